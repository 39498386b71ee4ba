"""The one error that the model layer raises for input a user can mend."""


class ModelError(ValueError):
    """A checkpoint, configuration or request that no model can serve.

    Its message is one sentence: what is wrong, where, and what to do.
    """

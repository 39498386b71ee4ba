"""The one error that the model layer raises for input a user can mend."""


class ModelError(ValueError):
    """A checkpoint, configuration or request that this model cannot serve; the message says what is wrong, where, and what to do."""

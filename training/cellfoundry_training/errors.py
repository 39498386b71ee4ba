"""The one error that the training layer raises for input a user can mend."""


class TrainingError(ValueError):
    """A configuration, store or run that cannot be trained; the message says what is wrong, where, and what to do."""

"""The one error that the data layer raises for input a user can mend."""


class DataError(ValueError):
    """Input or store that cannot be used; the message says what is wrong, where, and what to do."""

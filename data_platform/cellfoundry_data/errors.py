"""The one error that the data layer raises for input a user can mend."""


class DataError(ValueError):
    """Input or store that cannot be used; the message says what is wrong, where, and what to do."""


class FractionError(DataError):
    """A fraction where raw counts belong.

    Attributes:
        where: row, gene and value.
    """

    def __init__(self, message: str, where: str) -> None:
        super().__init__(message)
        self.where = where

"""The one error that the serving layer raises for input a user can mend."""


class ServingError(ValueError):
    """An export, engine or request that cannot be served; says what is wrong, where, and what to do."""

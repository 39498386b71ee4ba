"""The one error that the benchmarks raise for a mistake a user can mend."""


class BenchError(ValueError):
    """Suite, folder or result that cannot be used; the message says what is wrong, where, and what to do."""

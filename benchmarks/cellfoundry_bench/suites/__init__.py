"""One file a suite; each has ``run() -> SuiteResult`` and is imported only when it runs."""

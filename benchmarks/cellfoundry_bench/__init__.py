"""Benchmark suites, their runner and report; the packages that a suite needs are imported when it runs."""

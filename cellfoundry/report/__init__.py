"""The quickstart's self-contained HTML report."""

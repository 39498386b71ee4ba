"""Self-contained HTML reports: of the quickstart, and of a store's sources."""

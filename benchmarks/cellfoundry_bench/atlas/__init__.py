"""Parts of the data suite: the synthetic atlas, its cache, and rows for reading, size, ingest and resume."""

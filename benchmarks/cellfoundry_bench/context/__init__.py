"""The decoder that is trained on a sample of the zeros against the full one: work, time, and what it learns."""

"""Reports of the downstream tasks: one self-contained page a run, and the numbers beside it."""

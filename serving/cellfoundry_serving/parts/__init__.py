"""Embedding in parts that are committed one by one: resumed after a kill, computed by one process or by many."""

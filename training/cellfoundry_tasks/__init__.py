"""Downstream tasks on AnnData: read-depth enhancement, cell annotation, mapping; each beside its baselines."""

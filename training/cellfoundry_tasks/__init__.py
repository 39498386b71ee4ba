"""Downstream tasks built on embeddings and fine-tuning. Empty until the first task lands."""

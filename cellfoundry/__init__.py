"""CellFoundry: raw single-cell counts in, embeddings and an endpoint out."""

"""Writers of embeddings: one file format a module, all streaming and atomic."""

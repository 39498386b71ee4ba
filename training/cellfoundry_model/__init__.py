"""The model: architecture, presets, model directories, import of official checkpoints, and the Embedder."""

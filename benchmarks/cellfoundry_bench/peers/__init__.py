"""The loaders that are compared, ours among them: each in its own environment and process, driven alike."""

"""Cell annotation: how few labelled cells a model needs, beside its baselines, and labels for new cells."""

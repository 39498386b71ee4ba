"""What the serve suite measures: the protocol's own cost, and the model behind it."""

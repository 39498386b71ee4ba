"""Pretraining: configuration, objective, and the loop over Ray Train and DeepSpeed."""

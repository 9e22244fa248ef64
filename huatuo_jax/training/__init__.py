"""Optimizer, loss, step, metrics and the training loop."""

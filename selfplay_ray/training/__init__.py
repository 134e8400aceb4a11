"""Turning training records into better weights: losses, batching, the trainer, checkpoints."""

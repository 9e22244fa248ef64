"""From records to batches: tokenizers, dialogue format, priority order, packing, rows; only `loader` imports jax and grain."""

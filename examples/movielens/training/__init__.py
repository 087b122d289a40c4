"""Request files to a checkpoint: settings, batches, optimizer, held-out metrics."""

__all__ = ["recipe", "train"]

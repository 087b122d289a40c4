"""TorchRec's models as models of plain tensors: jagged features padded, pooled lookups written out."""

__all__ = ["flat", "options", "padding"]

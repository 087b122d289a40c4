"""One file per architecture, and the table that lists them."""

__all__ = ["pretrained", "ranking_model", "table"]

"""The quality cost of UG-Sep and int8: the training runs, and the page about them."""

__all__ = ["measure", "page"]

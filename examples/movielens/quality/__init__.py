"""What UG-Sep and int8 cost in quality: the training runs, and the page about them."""

__all__: list[str] = []

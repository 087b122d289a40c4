"""Numbers and tables as text, SVG and HTML."""

__all__: list[str] = []

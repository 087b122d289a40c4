"""Numbers and tables as text, SVG and HTML."""

__all__ = ["byte_sizes", "console", "html", "json_text", "markdown", "svg"]

"""Numbers and tables as text, SVG and HTML."""

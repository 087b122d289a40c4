"""Numbers and tables as text, SVG and HTML."""

from engines.render.byte_sizes import parse_size, readable_bytes
from engines.render.json_text import finite

__all__ = ["finite", "parse_size", "readable_bytes"]

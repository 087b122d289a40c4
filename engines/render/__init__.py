"""Numbers and tables as text, SVG and HTML."""

from engines.render.byte_sizes import parse_size, readable_bytes
from engines.render.json_text import json_text

__all__ = ["json_text", "parse_size", "readable_bytes"]

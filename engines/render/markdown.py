"""Markdown tables, and the sections of a page that commands write between markers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from graphs.base.errors import printable_line, printable_text
from graphs.base.regular_file import is_regular_file

_HTML = re.compile(r"<(?=[A-Za-z/!?])")  # what could start an element, a comment or a marker

_NO_MARKER = re.compile(r"[<>]|-(?=-)")  # what a comment cannot hold


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], align: str = "") -> list[str]:
    """Return the lines of a table; ``align`` is ``l`` or ``r`` per column, by default ``l`` for the first only."""
    sides = align or "l" + "r" * (len(heads) - 1)
    lines = [_line(heads), "|" + "|".join("---" if side == "l" else "---:" for side in sides) + "|"]
    return lines + [_line(row) for row in rows]


def write_section(path: Path, name: str, section: str, header: str) -> None:
    """Write a section between its markers in a Markdown file, replacing an older one of the same name.

    Args:
        path: the file; it and its folder are created if missing.
        name: of the section, in its markers ``<!-- begin NAME -->`` and ``<!-- end NAME -->``.
        section: text that ends with a newline; it holds Markdown and no HTML.
        header: what a new file starts with.
    """
    label = _NO_MARKER.sub("_", printable_line(name))
    begin, end = f"<!-- begin {label} -->", f"<!-- end {label} -->"
    text = path.read_text(encoding="utf-8") if is_regular_file(path, "give a Markdown file") else header
    marked = f"{begin}\n{_HTML.sub('&lt;', printable_text(section))}{end}"
    if begin in text and end in text:
        text = text.split(begin, 1)[0] + marked + text.split(end, 1)[1]
    else:
        text = f"{text.rstrip()}\n\n{marked}\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_cell, cells))} |"


def _cell(text: str) -> str:
    """Return a text that stays in its cell and starts no HTML element; other Markdown is left alone."""
    line = printable_line(text) if text else ""
    return _HTML.sub("&lt;", line).replace("|", "\\|")

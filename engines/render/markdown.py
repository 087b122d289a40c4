"""Markdown tables, and the sections of a page that commands write between markers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from graphs.base.errors import printable_line


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
        section: text that ends with a newline.
        header: what a new file starts with.
    """
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    text = path.read_text(encoding="utf-8") if path.exists() else header
    marked = f"{begin}\n{section}{end}"
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
    return line.replace("<", "&lt;").replace("|", "\\|")

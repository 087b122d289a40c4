"""The two errors a user can see: bad input (exit 2) and a failed gate (exit 1)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_MAX_LINE = 4_000


class _OneLine(Exception):
    """An error whose message is one printable line, whatever names and texts from files went into it."""

    def __str__(self) -> str:
        """Return the message; a name in it can neither break the line nor control a terminal."""
        return printable_line(super().__str__())


class UgsepError(_OneLine):
    """Bad input or usage: one line that says what is wrong, where, and how to fix it; exit status 2."""


class GateFailed(_OneLine):
    """A parity, quality or latency gate failed; the message gives value and bound; exit status 1."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``", did you mean 'x'?"`` for the closest known name, else the list of known names.

    Meant to be appended to an error message: ``f"unknown model 'zenit'{nearest('zenit', models)}"``.
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f", did you mean '{close[0]}'?"
    return f"; known: {', '.join(names) or 'none'}"


def printable_line(text: str) -> str:
    """Return a message as one line that cannot control a terminal: line breaks collapsed, the rest escaped.

    Very long messages lose their middle: they begin with the place and end with the remedy.
    """
    line = text if text.isprintable() else " ".join(text.split())
    line = line if line.isprintable() else _escaped(line)
    return line if len(line) <= _MAX_LINE else f"{line[: _MAX_LINE // 2]} ... {line[-_MAX_LINE // 3 :]}"


def printable_text(text: str) -> str:
    """Return a text that cannot control a terminal or turn a line around: all but its line breaks escaped."""
    return "\n".join(line if line.isprintable() else _escaped(line) for line in text.split("\n"))


def _escaped(line: str) -> str:
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


def first_line(error: object) -> str:
    """Return the first line of an error's message, or its class name if the message is empty."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__

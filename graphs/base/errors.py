"""The two errors a user can see: bad input (exit 2) and a failed gate (exit 1)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_MAX_LINE = 1_000  # a dozen rows of a terminal; the longest path and a sentence around it
_MAX_WORD = 200
_CUT = " ... "


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

    A message begins with the place and ends with the remedy, so a very long one loses the middle of its long words,
    which names and values from files are, and then its own.
    """
    line = text if text.isprintable() else " ".join(text.split())
    line = line if line.isprintable() else _escaped(line)
    if len(line) > _MAX_LINE:
        line = _without_middle(" ".join(_without_middle(word, _MAX_WORD) for word in line.split(" ")), _MAX_LINE)
    return line


def printable_text(text: str) -> str:
    """Return a text that cannot control a terminal or turn a line around: all but its line breaks escaped."""
    return "\n".join(line if line.isprintable() else _escaped(line) for line in text.split("\n"))


def _without_middle(text: str, most: int) -> str:
    """Return a text of ``most`` characters at the most, an ellipsis in the place of what is left out."""
    if len(text) <= most:
        return text
    end = most // 3
    return f"{text[: most - end - len(_CUT)]}{_CUT}{text[-end:]}"


def _escaped(line: str) -> str:
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


def first_line(error: object) -> str:
    """Return the first line of an error's message, or its class name if the message is empty."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__

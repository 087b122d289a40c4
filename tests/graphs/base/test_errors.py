"""Every message is one printable line, whatever a file brought into it."""

from __future__ import annotations

import pickle

import pytest

from graphs.base.errors import GateFailed, UgsepError, printable_line


@pytest.mark.parametrize("kind", [UgsepError, GateFailed])
@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("two\nlines\r\n", "two lines"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\u202eright to left", "\\u202eright to left"),
        ("\ud800", "\\ud800"),
        ("\u2028", ""),
        ("two  spaces, \u4e2d", "two  spaces, \u4e2d"),
    ],
)
def test_a_message_is_one_printable_line(kind: type[Exception], name: str, shown: str) -> None:
    error = kind(f"weight '{name}'")
    assert str(error) == f"weight '{shown}'" or str(error) == f"weight '{shown} '"
    assert str(error).isprintable()
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # errors cross processes


def test_a_very_long_message_keeps_its_place_and_its_remedy() -> None:
    line = printable_line("here: " + "\n" * 9 + "x\x00" * 90_000 + "; correct it")
    assert line.startswith("here: x")
    assert line.endswith("; correct it")
    assert len(line) < 4_000
    assert printable_line(line) == line

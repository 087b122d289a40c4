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
    assert len(line) <= 1_000
    assert printable_line(line) == line


def test_long_names_leave_what_is_wrong_between_them() -> None:
    first, second = "a" * 3_000, "b\n" * 3_000
    line = str(UgsepError(f"'{first}' is no weight of '{second[:-1]}', did you mean 'c'?"))
    assert " is no weight of 'b b" in line
    assert line.endswith("b', did you mean 'c'?")
    assert " ... " in line
    assert len(line) <= 1_000
    names = " ".join(f"weight_{i}" for i in range(999))
    assert len(str(UgsepError(f"known: {names}"))) == 1_000

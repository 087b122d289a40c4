"""JSON and YAML texts are read strictly, with errors of one line that say where."""

from __future__ import annotations

import pytest

from graphs.base.errors import UgsepError
from graphs.base.json_text import read_json
from graphs.base.yaml_text import read_yaml


def test_plain_texts_are_read() -> None:
    assert read_json(b'{"a": [1, null]}', "here", "fix it") == {"a": [1, None]}
    assert read_yaml("a: &x {b: 1}\nc: {<<: *x, d: 2}\ne: |\n  two\n  lines\n", "here") == {
        "a": {"b": 1}, "c": {"b": 1, "d": 2}, "e": "two\nlines\n",
    }  # fmt: skip
    assert read_yaml("", "here") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "line 1, column 5"),
        ("a: 1\nb: 2\na: 3", r"'a' is given twice in \"here\", line 3, column 1"),
        ("- {x: {y: 1, y: 2}}", "'y' is given twice.*line 1, column 14"),
        ('"\\e[31m": 1', r"x1b\[31m' holds characters that cannot be printed.*line 1, column 1"),
        ("a: \x07", "special characters are not allowed"),
        ("a: 2020-13-45", "month"),
        ("!!bool x", ""),
        ("&a [*a]", "recursive"),
        (b"\xff\xff", ""),
        ("[" * 5_000, ""),
    ],
)
def test_bad_yaml_is_one_line_that_says_where(text: str | bytes, message: str) -> None:
    with pytest.raises(UgsepError, match=f"^here is not YAML: [^\n]*{message}[^\n]*$"):
        read_yaml(text, "here")

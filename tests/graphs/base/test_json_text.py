from __future__ import annotations

import pytest

from graphs.base.errors import UgsepError
from graphs.base.json_text import read_json


@pytest.mark.parametrize("text", ["{", b"\xff\x00", '{"a": 1, "a": 2}', "NaN", "[" * 100_000])
def test_bad_json_is_one_line(text: str | bytes) -> None:
    with pytest.raises(UgsepError, match=r"^here: not valid JSON \([^\n]*\); fix it$"):
        read_json(text, "here", "fix it")


def test_long_integers_are_refused_without_advice_for_programmers() -> None:
    assert read_json("9" * 400, "here", "fix it") == 10**400 - 1
    with pytest.raises(UgsepError, match=r"^here: not valid JSON \(an integer of 6000 digits\); fix it$"):
        read_json("[-" + "9" * 5999 + "]", "here", "fix it")


def test_deep_nesting_is_refused_before_anything_recurses_over_it() -> None:
    deepest = "[" * 64 + "]" * 64
    assert read_json(deepest, "here", "fix it") is not None
    for nested in (f"[{deepest}]", '{"a":' * 65 + "1" + "}" * 65, "[" * 70 + "1", '{"a": [' * 500):
        with pytest.raises(UgsepError, match=r"nested more than 64 levels deep\); fix it"):
            read_json(nested, "here", "fix it")
    flat = ['["' + "[" * 500 + '"]', r'["\"' + "[{" * 500 + r'\\"]', "[" + "[]," * 5000 + "{}]", '"' + "[" * 99 + '"']
    for text in flat:  # brackets inside strings and beside each other nest nothing
        assert read_json(text, "here", "fix it")


def test_brackets_in_strings_are_no_nesting() -> None:
    text = '{"a": "' + "[" * 100 + '", "b\\"[": "{", "c": [[]]}'
    assert read_json(text, "here", "fix it") == {"a": "[" * 100, 'b"[': "{", "c": [[]]}


@pytest.mark.parametrize(
    "text", ["[" * 65 + "]" * 65, '{"a":' * 65 + "1" + "}" * 65, '["' + "[" * 100 + '\\""' + ",[" * 70]
)
def test_nesting_is_bounded_before_parsing(text: str) -> None:
    with pytest.raises(UgsepError, match="nested more than 64 levels deep"):
        read_json(text, "here", "fix it")


def test_nesting_up_to_the_bound_is_read() -> None:
    assert read_json("[" * 64 + "]" * 64, "here", "fix it")

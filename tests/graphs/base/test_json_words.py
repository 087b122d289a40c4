"""Errors about documents use the words of JSON, not those of Python."""

from __future__ import annotations

import datetime
import json
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from graphs.base.config import check_plain, parse
from graphs.base.errors import UgsepError
from graphs.base.json_words import named_type, rejection, shown


@pytest.mark.parametrize("value", [None, True, False, 3, -2.5, "x", "it's", [None, [True]], {"a": "é"}, "\x1b[2J\n"])
def test_a_value_is_shown_as_json(value: Any) -> None:
    text = shown(value)
    assert json.loads(text) == value
    assert text.isascii()
    assert text.isprintable()


def test_what_json_does_not_have_or_python_does_not_print_is_described() -> None:
    assert shown(datetime.date(2026, 2, 3)) == "a date"
    assert shown({1, 2}) == "a set"
    assert shown(10**5000) == f"an integer of {(10**5000).bit_length()} bits"
    assert shown([10**5000]) == "a list"
    assert len(shown("x" * 1000)) == 60


@pytest.mark.parametrize(
    ("kind", "name"),
    [(type(None), "null"), (bool, "a boolean"), (int, "an integer"), (float, "a number"), (str, "a string"),
     (list, "a list"), (tuple, "a list"), (dict, "an object")],
)  # fmt: skip
def test_types_have_the_names_of_json(kind: type, name: str) -> None:
    assert named_type(kind) == name


class Inner(msgspec.Struct, forbid_unknown_fields=True):
    int: float


class Outer(msgspec.Struct, forbid_unknown_fields=True):
    a: int | None = None
    b: list[Inner] = []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": "1"}', "Expected `integer | null`, got `string` - at `$.a`"),
        ('{"b": [{"int": true}]}', "Expected `number`, got `boolean` - at `$.b[0].int`"),
        ('{"b": [{"int": 1, "bool": 2}]}', "Object contains unknown field `bool` - at `$.b[0]`"),
        ("[]", "Expected `object`, got `array`"),
    ],
)
def test_a_rejection_keeps_names_and_paths(text: str, said: str) -> None:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.json.decode(text, type=Outer)
    assert rejection(caught.value) == said


@dataclass(frozen=True)
class Settings:
    threads: int = 1
    share: float | None = None
    names: tuple[str, ...] = ()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"threads": None}, "here: threads is null, not an integer; correct the value"),
        ({"threads": True}, "here: threads is true, not an integer; correct the value"),
        ({"share": "x"}, 'here: share is "x", not a number or null; correct the value'),
        ({"names": ["a", False]}, "here: names[1] is false, not a string; correct the value"),
        (None, "here: expected a mapping of settings, got null"),
    ],
)
def test_a_refused_setting_is_quoted_as_json(values: Any, message: str) -> None:
    with pytest.raises(UgsepError) as caught:
        parse(Settings, values, "here")
    assert str(caught.value) == message


def test_control_characters_are_shown_as_json_escapes_them() -> None:
    with pytest.raises(UgsepError) as caught:
        check_plain(["\x1b[2J"], "here")
    assert str(caught.value) == 'here[0] is "\\u001b[2J", which holds characters that cannot be printed'

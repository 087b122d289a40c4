"""JSON and YAML texts are read strictly; errors are one line that says where."""

from __future__ import annotations

import math
import random

import pytest

from graphs.base.errors import UgsepError
from graphs.base.json_text import read_json
from graphs.base.yaml_text import read_yaml, write_yaml
from tests.mutations import mutated_text, refusal


def test_plain_texts_are_read() -> None:
    assert read_json(b'{"a": [1, null]}', "here", "fix it") == {"a": [1, None]}
    assert read_yaml("a: {b: 1}\nc: [~, '']\ne: |\n  two\n  lines\n", "here") == {
        "a": {"b": 1}, "c": [None, ""], "e": "two\nlines\n",
    }  # fmt: skip
    assert read_yaml("", "here") is None


def test_values_follow_the_core_schema_of_yaml_1_2() -> None:
    text = "[1e-5, -.5, 1., +7, 0x1F, 0o17, .inf, true, False, null, ~, yes, off, 2020-13-45, 1:30, 1_0, =, <<, 0b1]"
    assert read_yaml(text, "here") == [
        1e-5, -0.5, 1.0, 7, 31, 15, float("inf"), True, False, None, None,
        "yes", "off", "2020-13-45", "1:30", "1_0", "=", "<<", "0b1",
    ]  # fmt: skip
    assert math.isnan(read_yaml(".nan", "here"))


def test_what_is_written_is_read_back() -> None:
    shared = [1]
    values = {"1e5": "1e5", "a": "yes", "b": [1.5e-7, True, None, "null", "~", "", "0x1f", "- x", "#", "\u4e2d"],
              "c": shared, "d": shared}  # fmt: skip
    assert read_yaml(write_yaml(values), "here") == values


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "line 1, column 5"),
        ("a: 1\nb: 2\na: 3", r"'a' is given twice \(line 3, column 1\)"),
        ("- {x: {y: 1, y: 2}}", "'y' is given twice.*line 1, column 14"),
        ('"\\e[31m": 1', r"x1b\[31m' holds characters that cannot be printed.*line 1, column 1"),
        ("a: \x07", "special characters are not allowed"),
        ("!!bool x", r"tags \('tag:yaml.org,2002:bool'\) are not accepted: write a plain value.*line 1, column 1"),
        ("a: !!float x", "tags .*float.*line 1, column 4"),
        ("!!int ''", "tags"),
        ("!!timestamp x", "tags"),
        ("!!python/object/apply:os.system [id]", "tags"),
        ("! x", "tags"),
        ("&a [*a]", "anchors and aliases .'a'. are not accepted: write the value out.*line 1, column 1"),
        ("a: *b", "anchors and aliases .'b'"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]", "anchors and aliases .'a'"),
        ("1: 2", "the key '1' is not a string: put it in quotes"),
        ("[a]: 2", "the key a list or mapping is not a string"),
        ("true: 2", "the key 'true' is not a string"),
        ("%YAML 2.0\n--- 1", "incompatible YAML"),
        ("a\n---\nb", "single document"),
        (b"\xff\xff", ""),
        ("9" * 5_000, "digits"),
        ("[" * 5_000, "nested more than 64 levels deep"),
        ("- " * 5_000, "nested more than 64 levels deep"),
    ],
)
def test_bad_yaml_is_one_line_that_says_where(text: str | bytes, message: str) -> None:
    with pytest.raises(UgsepError, match=f"^here is not YAML: [^\n]*{message}[^\n]*; correct it$") as caught:
        read_yaml(text, "here")
    assert str(caught.value).isprintable()


def test_the_text_is_not_repeated() -> None:
    for text in ("[" + "x" * 900, "'" + "x" * 900, "a: {" + "x" * 900 + ": 1, b: 2, b: 3}", "x" * 900 + ": *a"):
        message = refusal(read_yaml, text, "here")
        assert message.count("here") == 1
        assert "xxx" not in message


def test_a_text_of_a_gigabyte_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(UgsepError, match="here has 2000000 bytes, which is out of range"):
        read_yaml("a" * 2_000_000, "here")


def test_mutated_yaml_is_read_or_refused_in_one_line() -> None:
    rng = random.Random(5)
    whole = write_yaml({"model": "zenith", "config": {"width": 24, "tasks": ["like"]}, "serving": {"threads": 1}})
    messages = [refusal(read_yaml, mutated_text(whole, rng), "here") for _ in range(300)]
    assert sum(map(bool, messages)) > 100
    assert {m[:16] for m in messages if m} == {"here is not YAML"}

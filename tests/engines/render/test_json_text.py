"""Output for scripts is standard JSON, whatever a run measured."""

import json

import pytest

from engines.render.json_text import json_text


def _refuse(name: str) -> None:
    pytest.fail(f"{name} is not JSON")


def test_what_is_not_finite_is_null() -> None:
    text = json_text({"a": [1.5, float("nan"), (float("inf"), "NaN")], "b": {"c": -float("inf"), "d": True}})
    found = json.loads(text, parse_constant=_refuse)
    assert found == {"a": [1.5, None, [None, "NaN"]], "b": {"c": None, "d": True}}

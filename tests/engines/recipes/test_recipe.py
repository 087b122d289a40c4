from __future__ import annotations

import re
from pathlib import Path

import pytest

from engines.recipes.recipe import Recipe, default_recipe, load_recipe
from graphs.base.errors import UgsepError


def test_settings_can_be_changed() -> None:
    recipe = load_recipe("zenith", ["config.user_tokens=12", "gates.sqnr_db=40.5", "serving.candidates=[1, 7]"])
    assert recipe.config["user_tokens"] == 12
    assert recipe.gates.sqnr_db == 40.5
    assert recipe.serving.candidates == (1, 7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("config.user_tokens", "is not a valid setting"),
        ("gates.sqnr=3", "sqnr"),
        ("model.x=3", "'model' is not a section"),
        ("config.width=[", "not YAML"),
        ("config={width: 8, width: 9}", "'width' is given twice"),
    ],
)
def test_bad_changes_are_one_line(change: str, message: str) -> None:
    with pytest.raises(UgsepError, match=message):
        load_recipe("zenith", [change])


@pytest.mark.parametrize(
    "change", ["x", "x=[", "serving.x=[*a", "config=x: {x: 'x", "gates.x.x=1", "model=!x [", "x=1"]
)
def test_messages_about_changes_are_short_and_name_a_value_once(change: str) -> None:
    long = change.replace("x", "x" * 3_000)
    with pytest.raises(UgsepError) as caught:
        load_recipe("zenith", [long])
    message = str(caught.value)
    assert len(message) < 400
    assert len(re.findall("x{20,}", message)) <= 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: zenith\nservng: {}", "unknown setting 'servng', did you mean 'serving'"),
        ("model: zenith\ngates: {sqnr: 3}", "sqnr"),
        ("config: {}", "'model' is missing; add it"),
        ("model: [", "is not YAML"),
        ("- 1", "expected a mapping"),
        (
            "model: zenith\nserving: {}\nserving: {threads: 2}",
            "'serving' is given twice .line 3, column 1",
        ),
        ('model: "a\\x1bb"', r"'a\\x1bb' holds characters that cannot be printed"),
        ("model: zenith\nconfig: {a: !!timestamp x}", "tags .* are not accepted"),
        ("model: zenith\nconfig: &a {b: *a}", "anchors and aliases .'a'. are not accepted"),
    ],
)
def test_bad_recipes_are_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(UgsepError, match=message) as caught:
        load_recipe(str(path))
    assert "\n" not in str(caught.value)


def test_settings_change_the_defaults_of_a_model_without_a_recipe() -> None:
    assert default_recipe("mine") == Recipe("mine")
    assert default_recipe("mine", ["gates.kendall_tau=0.5"]).gates.kendall_tau == 0.5
    with pytest.raises(UgsepError, match="kendal"):
        default_recipe("mine", ["gates.kendal=0.5"])

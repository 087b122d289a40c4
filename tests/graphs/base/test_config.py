"""Configs: strict parsing, the round trip, and impossible sizes rejected with a value that works."""

from __future__ import annotations

import re
from typing import Any

import pytest

from graphs.base.config import parse, to_mapping
from graphs.base.errors import UgsepError
from graphs.models.table import architectures, model_class
from tests.graphs.model_laws import ALL, FEATURES, make_config


@pytest.mark.parametrize("variant", ALL)
def test_a_config_survives_the_round_trip(variant: str) -> None:
    config = make_config(variant, "3:1")
    assert parse(type(config), to_mapping(config), "here") == config


def test_every_architecture_is_under_test() -> None:
    assert {architecture for architecture, _ in ALL.values()} == set(architectures())


def test_an_unknown_architecture_names_the_nearest() -> None:
    with pytest.raises(UgsepError, match="unknown model 'rankmixr', did you mean 'rankmixer'"):
        model_class("rankmixr")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"widht": 8}, "recipe: unknown setting 'widht', did you mean 'width'"),
        ({"width": "8"}, "recipe: .*width"),
        ({"width": 8.5}, "recipe: .*width"),
        ({"ug_sep": 1}, "recipe: .*ug_sep"),
        ([], "recipe: expected a mapping of settings, got a list"),
        ({"features": [{"name": "a", "side": "both", "kind": "id", "vocab": 3}]}, "feature"),
    ],
)
def test_strict_reading(values: Any, message: str) -> None:
    cls = type(make_config("zenith", "1:1"))
    whole = {**to_mapping(make_config("zenith", "1:1")), **values} if isinstance(values, dict) else values
    with pytest.raises(UgsepError, match=message):
        parse(cls, whole, "recipe")


def test_a_choice_of_words_lists_them() -> None:
    config = make_config("tokenmixer-large", "1:1")
    with pytest.raises(UgsepError, match='recipe: global_token is "both", not one of item, split'):
        parse(type(config), {**to_mapping(config), "global_token": "both"}, "recipe")


EVERY = [
    ({"user_tokens": 0}, "user_tokens is 0; it must be at least 1"),
    ({"item_tokens": 0}, "item_tokens is 0; it must be at least 1"),  # user tokens = T
    ({"layers": 0}, "layers is 0"),
    ({"tasks": ()}, "tasks are"),
    ({"tasks": ("a", "a")}, "tasks are"),
    ({"features": FEATURES[:3]}, "none of side 'item'"),
    ({"features": (*FEATURES, FEATURES[0])}, r"named twice: \['uid'\]"),
]
OWN: dict[str, list[tuple[dict[str, Any], str]]] = {
    "zenith": [
        ({"fusion_width": 10}, "8 tokens .* fusion_width 10 .* width 24; fusion_width = 24 works"),
        ({"user_tokens": 1}, "user_tokens is 1, .* give at least 2"),
        ({"hidden": 0}, "hidden is 0; it must be at least 1"),
        ({"fusion_width": -24}, "fusion_width is -24; it must be at least 0"),
        ({"fusion_width": 3}, "leaves 0 user and 1 item tokens; fusion_width = 24 works"),
    ],
    "rankmixer": [
        ({"width": 22}, "width 22 is not divisible by the 8 mixed tokens .*; width = 24 works"),
        ({"mixed_user_tokens": 1}, "width 24 is not divisible by the 5 .*; width = 25 works"),
        ({"mixed_item_tokens": -1}, "mixed_item_tokens is -1; it must be at least 0"),
        ({"embedding_width": 1, "user_tokens": 6}, "user_tokens is 6, .* 7 wide .* give 4"),
        ({"hidden": 0}, "hidden is 0"),
        ({"experts": -1}, "experts is -1"),
        ({"l1_weight": -1e-4}, "l1_weight is -0.0001; it must be at least 0"),
        ({"experts": 1}, "experts is 1; give 0 for a dense network or at least 2"),
    ],
    "tokenmixer-large": [
        ({"width": 25}, "width 25 is not divisible by the 8 mixed rows .*; width = 32 works"),
        ({"mixed_user_rows": 1}, "width 24 is not divisible by the 5 mixed rows .*; width = 25 works"),
        ({"global_token": "both"}, "global_token is 'both'; give 'item' or 'split'"),
        ({"read_out": "last"}, "read_out is 'last'; give 'mean' or 'global'"),
        ({"auxiliary_weight": -0.1}, "auxiliary_weight is -0.1; it must be at least 0"),
        ({"item_tokens": 1}, "item_tokens is 1, which the global token takes; item_tokens = 2 works"),
        ({"hidden": 0}, "hidden is 0"),
    ],
    "tokenmixer-large-moe": [
        ({"active_experts": 5}, "active_experts is 5, but experts is 4; active_experts = 2 works"),
        ({"active_experts": 0}, "active_experts is 0, but experts is 4; active_experts = 2 works"),
        ({"active_experts": 1}, "active_experts is 1, but one is the shared expert; active_experts = 2 works"),
        ({"experts": 3}, "hidden 20 is not divisible by the 3 experts; hidden = 21 works"),
        ({"experts": 1}, "experts is 1; give 0 for a dense network or at least 2"),
    ],
    "zenith-pp": [
        ({"attention_heads": 5}, "width 24 is not divisible by the 5 attention_heads; width = 25 works"),
        ({"attention_heads": 0}, "attention_heads is 0"),
        ({"hidden": -1}, "hidden is -1; it must be at least 1"),
        ({"balance_weight": -1.0}, "balance_weight is -1.0; it must be at least 0"),
        ({"z_weight": float("nan")}, "z_weight is nan; it must be at least 0"),
        ({"active_experts": 5}, "active_experts is 5, but experts is 4; active_experts = 2 works"),
        ({"item_tokens": 1}, "item_tokens is 1, .* give at least 2"),
    ],
    "hstu": [
        ({"attention_heads": 5}, "width 24 is not divisible by the 5 attention_heads; width = 25 works"),
        ({"history": ("histor",)}, r"'histor', but the user's sequences are \['history'\], did you mean 'history'"),
        ({"history": ("tags",)}, "history names 'tags', but the user's sequences are"),
        ({"features": (FEATURES[0], *FEATURES[2:])}, "no sequence of side 'user'"),
        ({"compensation": True}, "compensation is for models .*; set compensation: false"),
        ({"ug_sep": False}, "ug_sep is false, .*; set ug_sep: true"),
        ({"item_tokens": 4096}, "context, history and candidate have 4102 tokens, above 4096"),
    ],
    "onetrans": [
        ({"attention_heads": 0}, "attention_heads is 0; it must be at least 1"),
        ({"hidden": 0}, "hidden is 0"),
    ],
    "unimixer": [
        ({"block": 10}, "block 10 does not divide width 24, blocks would straddle tokens; block = 8 works"),
        ({"block": 48}, "block 48 does not divide width 24, .*; block = 24 works"),
        ({"block": 0}, "block is 0"),
        ({"hidden": 0}, "hidden is 0"),
        ({"rank": 0}, "rank is 0"),
        ({"last_temperature": 0.0}, "last_temperature is 0.0; it must be above 0"),
    ],
}


def _bad() -> list[Any]:
    every = [(variant, *case) for variant in ALL for case in EVERY]
    own: list[tuple[str, dict[str, Any], str]] = [(v, *case) for v, cases in OWN.items() for case in cases]
    return [pytest.param(*case, id=f"{case[0]}-{case[1].keys()}") for case in every + own]


@pytest.mark.parametrize(("variant", "changes", "message"), _bad())
def test_sizes_that_cannot_work_are_refused(variant: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UgsepError, match=message) as caught:
        make_config(variant, "1:1", **changes)
    assert "\n" not in str(caught.value)
    works = re.search(r"; (\w+) = (\d+) works", str(caught.value))
    if works:  # the suggested value must work
        make_config(variant, "1:1", **{**changes, works[1]: int(works[2])})

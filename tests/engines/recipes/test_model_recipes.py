"""The shipped recipes: every config is valid, and the paper sizes have the papers' parameter counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engines.recipes.recipe import load_recipe, recipe_names
from examples.movielens.data.features import TASKS, declare
from graphs.base.config import parse
from graphs.base.features import random_rows
from graphs.models.ranking_model import ModelConfig, initialise
from graphs.models.table import model_class

SEQUENCES = ("hstu", "onetrans")
NAMED = (
    *("rankmixer", "tokenmixer-large", "zenith", "zenith-pp", "unimixer", "unimixing-lite"),
    *("rankmixer-moe", "tokenmixer-large-moe", *SEQUENCES),
)
PAPER_MILLIONS = {
    "rankmixer-100m": 100,
    "rankmixer-1b": 1000,
    "tokenmixer-large-500m": 500,
    "tokenmixer-large-7b": 7000,
    "zenith-100m": 100,
    "unimixing-lite-40m": 40,
}


def config_of(name: str, **changes: Any) -> ModelConfig:
    recipe = load_recipe(name)
    values = {**recipe.config, **changes}
    if "features" not in values:  # they come from the data
        values |= {"features": declare(users=30, items=40), "tasks": TASKS}
    return parse(model_class(recipe.model).config_class, values, name)


def test_every_model_of_the_papers_has_a_recipe() -> None:
    assert set(recipe_names()) >= {*NAMED, *PAPER_MILLIONS}


@pytest.mark.parametrize("name", PAPER_MILLIONS)
def test_paper_sizes(name: str) -> None:
    config = config_of(name)
    parameters = config.counts().parameters
    assert parameters == pytest.approx(PAPER_MILLIONS[name] * 1e6, rel=0.05)
    with torch.device("meta"):  # 7B weights would be 28 GB
        model = model_class(load_recipe(name).model)(config)
    assert model.dense_parameters() == parameters


@pytest.mark.parametrize("name", sorted({*NAMED, *PAPER_MILLIONS}))
def test_recipes_run_at_reduced_size(name: str) -> None:
    recipe = load_recipe(name)
    # A common divisor preserves all ratios: heads, blocks and experts still divide the widths.
    smaller = {"width": 4, "hidden": 16, "embedding_width": 4, "block": 4, "tower": 4}
    changes = {key: value // smaller[key] for key, value in recipe.config.items() if key in smaller}
    config = config_of(name, **changes)
    model = model_class(recipe.model)(config)
    initialise(model, 0)
    rows = random_rows(config.features, 3, torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model.eval().for_inference()(rows)
    assert all(v.shape == (3,) and v.isfinite().all() for v in logits.values())
    # user:item is 1:1 in all of them but the sequence models, with 1 or 4 positions of 45 for the item
    least, most = (0.85, 1.0) if name in SEQUENCES else (0.3, 0.7)
    assert least < config.counts().reusable_share < most

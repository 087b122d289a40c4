"""Every shipped recipe: it parses, round-trips, and builds at a reduced size."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from engines.build.pipeline import build
from engines.build.sources import Sources, random_config
from engines.recipes.recipe import Recipe, dump_recipe, load_recipe, recipe_names
from engines.serve.ranker import Ranker
from graphs.base.features import Feature, random_rows
from quant.search.metrics import kendall_tau

FEATURES = (
    Feature("user_id", "user", "id", vocab=50, group="user_id"),
    Feature("age", "user", "id", vocab=9, group="age"),
    *(
        Feature(name, "user", "sequence", vocab=61, width=5, table="item_id", group="history")
        for name in ("recent_items", "recent_likes", "recent_dislikes")
    ),
    Feature("activity", "user", "dense", width=6, group="activity"),
    Feature("taste", "user", "dense", width=5, group="taste"),
    Feature("item_id", "item", "id", vocab=61, group="item_id"),
    Feature("year", "item", "id", vocab=12, group="year"),
    Feature("genres", "item", "dense", width=7, group="genres"),
    Feature("popularity", "item", "dense", width=3, group="popularity"),
    Feature("affinity", "item", "dense", width=4, group="cross"),
)
SMALL = {"width": 32, "hidden": 24, "tower": 8, "embedding_width": 8, "block": 8, "user_tokens": 4, "item_tokens": 4}


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("features") / "features.json"
    path.write_text(json.dumps({"features": [dataclasses.asdict(f) for f in FEATURES], "tasks": ["like"]}))
    return path


def reduced(recipe: Recipe) -> Recipe:
    """Return the recipe with small widths but the same graph structure."""
    config = {k: min(v, SMALL[k]) if k in SMALL else v for k, v in recipe.config.items()}
    config["layers"] = min(config["layers"], 3)
    serving = dataclasses.replace(recipe.serving, candidates=(1, 9), compile_for=(), max_candidates=300)
    # Tiny random weights give nearly equal logits, and their routers hardly prefer any expert, so the bounds on rank
    # agreement, SQNR and rerouted rows are deliberately loose.
    gates = dataclasses.replace(
        recipe.gates,
        kendall_tau=0.5,
        sqnr_db=12.0,
        max_probability=0.2,
        same_experts_probability=0.2,
        rerouted_rows=0.5,
        fraction_of_limit=0.0,
        request_p99_ms=0.0,
    )
    return dataclasses.replace(recipe, config=config, serving=serving, gates=gates)


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_reads_back_what_it_dumps(name: str, tmp_path: Path, features: Path) -> None:
    recipe = load_recipe(name)
    path = tmp_path / "resolved.yaml"
    path.write_text(dump_recipe(recipe))
    assert load_recipe(str(path)) == recipe
    config = random_config(recipe, features)
    assert config.counts().item.flops > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_builds_at_reduced_size(name: str, tmp_path: Path, features: Path) -> None:
    outcome = build(name, reduced(load_recipe(name)), Sources(None, features=features), tmp_path / name)
    assert outcome.report["passed"]
    assert outcome.report["synthetic"]
    assert outcome.report["split"]["reusable_share"] > 0.2
    # some weights must be int8; at this size, embedding tables, which stay float, are most of the bytes
    weights = outcome.report["weights"]
    assert weights["quantized_bytes"] < 0.9 * weights["fp32_bytes"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hstu", "zenith"])
def test_state_in_half_the_bytes_passes_the_gates(name: str, tmp_path: Path, features: Path) -> None:
    bundles = {}
    for state in ("fp32", "fp16"):
        recipe = reduced(load_recipe(name, [f"serving.state={state}"]))
        bundles[state] = build(name, recipe, Sources(None, features=features), tmp_path / state)
        assert bundles[state].report["passed"]
    sizes = {state: outcome.report["split"] for state, outcome in bundles.items()}
    assert sizes["fp32"]["state_bytes_per_user"] == sizes["fp32"]["fp32_state_bytes_per_user"]
    # Which positions of a history are there is a state of one byte each, in both.
    flags = 2 * sizes["fp16"]["state_bytes_per_user"] - sizes["fp16"]["fp32_state_bytes_per_user"]
    assert 0 <= flags <= sum(f.width for f in FEATURES if f.kind == "sequence") + SMALL["user_tokens"]
    rows = random_rows(FEATURES, 40, torch.Generator().manual_seed(3))
    user = {f.name: rows[f.name][:1].numpy() for f in FEATURES if f.side == "user"}
    items = {f.name: rows[f.name].numpy() for f in FEATURES if f.side == "item"}
    order, held = {}, {}
    for state, outcome in bundles.items():
        with Ranker.from_bundle(outcome.bundle) as ranker:
            order[state] = ranker.score(user, items)["like"]
            held[state] = ranker.cache_info().bytes - sum(v.nbytes for v in user.values())
    assert held == {state: size["state_bytes_per_user"] for state, size in sizes.items()}
    assert kendall_tau([order["fp32"]], [order["fp16"]]) > 0.95

"""A tiny Zenith, its checkpoint, its requests and a whole bundle: small enough to build in seconds."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from engines.build.sources import Sources
from engines.recipes.recipe import Gates, Quantization, Recipe, Serving
from graphs.base.features import Feature
from graphs.models.ranking_model import initialise
from graphs.models.zenith import Zenith, ZenithConfig

FEATURES = (
    Feature("user_id", "user", "id", vocab=50),
    Feature("age", "user", "dense", width=3, group="profile"),
    Feature("recent", "user", "sequence", vocab=61, width=5, table="item_id", group="history"),
    Feature("item_id", "item", "id", vocab=61),
    Feature("genres", "item", "dense", width=7, group="genres"),
    Feature("affinity", "item", "dense", width=4, group="cross"),
)
CONFIG = ZenithConfig(features=FEATURES, width=32, user_tokens=4, item_tokens=3, hidden=40, tower=8)
RECIPE = Recipe(
    model="zenith",
    quantization=Quantization(scheme="mse"),
    serving=Serving(candidates=(1, 9), max_candidates=64, compile_for=()),
    gates=Gates(auc_change=1.0, fraction_of_limit=0.0, sqnr_db=25.0, kendall_tau=0.9),
)


def model(seed: int = 0, config: ZenithConfig = CONFIG) -> Zenith:
    """Return a tiny model whose logits differ clearly between candidates."""
    made = Zenith(config)
    initialise(made, seed)
    with torch.no_grad():
        for head in made.heads.values():
            assert isinstance(head.logit, torch.nn.Linear)
            head.logit.weight.mul_(8.0)
    return made.eval()


def rows(features: tuple[Feature, ...], count: int, rng: np.random.Generator) -> dict[str, NDArray[np.generic]]:
    """Return fresh random columns of the features' dtypes and shapes."""
    out: dict[str, NDArray[np.generic]] = {}
    for f in features:
        shape = (count, *f.row_shape)
        if f.kind == "dense":
            out[f.name] = rng.standard_normal(shape).astype(np.float32)
        else:
            out[f.name] = rng.integers(0, f.vocab, shape)
    return out


def user_and_items(
    candidates: int, seed: int = 0
) -> tuple[dict[str, NDArray[np.generic]], dict[str, NDArray[np.generic]]]:
    """Return one user's row and ``candidates`` item rows."""
    rng = np.random.default_rng(seed)
    user = rows(tuple(f for f in FEATURES if f.side == "user"), 1, rng)
    return user, rows(tuple(f for f in FEATURES if f.side == "item"), candidates, rng)


def write_requests(path: Path, requests: int, seed: int) -> Path:
    """Write requests of 5 to 12 candidates with random labels to a Parquet file."""
    rng = np.random.default_rng(seed)
    columns: dict[str, list[NDArray[np.generic]]] = {f.name: [] for f in FEATURES}
    ids, labels = [], []
    for request in range(requests):
        n = int(rng.integers(5, 13))
        user, items = user_and_items(n, seed=int(rng.integers(1 << 30)))
        for name, value in user.items():
            columns[name].append(np.repeat(value, n, axis=0))
        for name, value in items.items():
            columns[name].append(value)
        ids.append(np.full(n, request))
        labels.append(rng.integers(0, 2, n).astype(np.float32))
    table = {"request_id": pa.array(np.concatenate(ids)), "like": pa.array(np.concatenate(labels))}
    for name, parts in columns.items():
        value = np.concatenate(parts)
        flat = pa.array(value.reshape(-1))
        table[name] = flat if value.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, value.shape[1])
    pq.write_table(pa.table(table), path)
    return path


def sources(folder: Path, seed: int = 0) -> Sources:
    """Write a checkpoint and request files into ``folder``."""
    model(seed).save_pretrained(folder / "checkpoint")
    calibration = write_requests(folder / "calibration.parquet", 12, seed=1)
    return Sources(folder / "checkpoint", (calibration,), (write_requests(folder / "test.parquet", 15, seed=2),))


def with_gates(recipe: Recipe, **bounds: float) -> Recipe:
    """Return the recipe with other bounds."""
    return dataclasses.replace(recipe, gates=dataclasses.replace(recipe.gates, **bounds))

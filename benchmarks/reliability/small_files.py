"""Bundles of the small model and a checkpoint of the smallest Zenith, made by the real commands."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.reliability.children.client import Children
from benchmarks.reliability.children.order import Order
from benchmarks.reliability.small_model import OPTIONS, RECIPE
from graphs.base.errors import UgsepError

_ZENITH = """model: zenith
config: {width: 16, layers: 1, user_tokens: 2, item_tokens: 2, hidden: 16, tower: 8}
"""
_FEATURES = {
    "tasks": ["like"],
    "features": [
        {"name": "user_id", "side": "user", "kind": "id", "vocab": 50},
        {"name": "age", "side": "user", "kind": "dense", "width": 3, "group": "profile"},
        {"name": "item_id", "side": "item", "kind": "id", "vocab": 61},
        {"name": "genres", "side": "item", "kind": "dense", "width": 5, "group": "genres"},
    ],
}


def small_bundle(children: Children, folder: Path, seed: int) -> Path:
    """Build a bundle of the small model with weights of a seed in ``folder``.

    Raises:
        UgsepError: the build fails.
    """
    recipe, out = folder / "small.yaml", folder / f"bundle-{seed}"
    recipe.write_text(RECIPE, encoding="utf-8")
    factory = f"{Path(__file__).with_name('small_model.py')}:make"
    argv = ("ugsep", "build", factory, *OPTIONS, "--recipe", str(recipe), "--out", str(out), "--no-cache")
    _run(children, argv, folder, {"SMALL_MODEL_SEED": str(seed)})
    return out


def small_checkpoint(children: Children, folder: Path) -> tuple[Path, Path, Path]:
    """Write a recipe, a features.json and a random checkpoint of the smallest Zenith, and return them.

    Raises:
        UgsepError: the command fails.
    """
    recipe, features, out = folder / "zenith.yaml", folder / "features.json", folder / "checkpoint"
    recipe.write_text(_ZENITH, encoding="utf-8")
    features.write_text(json.dumps(_FEATURES), encoding="utf-8")
    argv = ("ugsep", "random-checkpoint", str(recipe), "--features", str(features), "--out", str(out))
    _run(children, (*argv, "--dtype", "fp32"), folder, {})
    return recipe, features, out


def _run(children: Children, argv: tuple[str, ...], folder: Path, environ: dict[str, str | None]) -> None:
    ended = children.run(Order(argv, folder, folder / "prepare.out", environ), 300)
    if ended.status:
        raise UgsepError(f"{' '.join(argv)} ends with {ended.status}: {ended.last_line}")

"""A sharded BF16 checkpoint, and the files of a folder, for the tests of streamed builds."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch

from engines.recipes.recipe import Recipe
from tests.graphs.checkpoint.test_files import shard
from tests.graphs.model_laws import make_config, make_model


def sharded_checkpoint(folder: Path, variant: str, **changes: object) -> Recipe:
    """Write a sharded BF16 checkpoint with weights above and below the external data threshold; return its recipe."""
    model = make_model(make_config(variant, "2:1", **changes))
    model.save_pretrained(folder)
    file = folder / "model.safetensors"
    weights = {k: v.bfloat16() for k, v in safetensors.torch.load_file(file).items()}
    safetensors.torch.save_file(weights, file)
    shard(folder, 3)
    return Recipe(model=model.architecture())


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file in a folder, by name."""
    return {p.name: p.read_bytes() for p in folder.iterdir()}

"""What models are made from: features, a checkpoint's config and weights, and calibration statistics."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np

from benchmarks.reliability.fuzz.guided.parser import Parser, joined, parted
from benchmarks.reliability.fuzz.mutate.json_values import mutate_json
from benchmarks.reliability.fuzz.mutate.safetensors_files import mutate_safetensors
from benchmarks.reliability.fuzz.sound_texts import FEATURES, RECIPE
from engines.build.random_checkpoint import write_random_checkpoint
from engines.build.sources import random_config
from engines.recipes.recipe import load_recipe
from graphs.checkpoint.files import stored_weights
from graphs.models.pretrained import meta_model
from quant.calibration.files import load_calibration, save_calibration
from quant.calibration.statistics import Calibration, Samples, SideStatistics, observe

__all__ = ["calibration", "config", "features", "weights"]


def features(folder: Path) -> Parser:
    """A features.json, up to the config of a model with these features."""
    path, recipe_file = folder / "features.json", folder / "small.yaml"
    recipe_file.write_text(RECIPE)
    recipe = load_recipe(str(recipe_file))

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        random_config(recipe, path)

    return Parser(parse, (json.dumps(FEATURES).encode(),), mutate_json)


def config(folder: Path) -> Parser:
    """The config.json of a checkpoint, up to the names and shapes of the model's weights."""
    checkpoint = _checkpoint(folder)
    path = checkpoint / "config.json"

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        meta_model(checkpoint)

    return Parser(parse, (path.read_bytes(),), mutate_json)


def weights(folder: Path) -> Parser:
    """A sharded checkpoint: its index, and the header and length of a shard."""
    checkpoint = _checkpoint(folder, shard_bytes=3000)
    index = next(checkpoint.glob("*.index.json"))
    shard = min(checkpoint.glob("*.safetensors"))

    def parse(data: bytes) -> None:
        for path, part in zip((index, shard), parted(data), strict=True):
            path.write_bytes(part)
        stored_weights(checkpoint)

    return Parser(parse, (joined(index.read_bytes(), shard.read_bytes()),), _either)


def calibration(folder: Path) -> Parser:
    """Both files of a calibration."""
    rng = np.random.default_rng(0)
    plain = observe(rng.standard_normal((5, 3)).astype(np.float32), 0, gram=True)
    tokens = observe(rng.standard_normal((2, 5, 3)).astype(np.float32), 2)
    side = SideStatistics("ab" * 32, {"x": plain, "t@2": tokens}, {"tower.weight": ("x",), "tokens.weight": ("t@2",)})
    found = Calibration(side, side, (Samples("cd" * 32, 1, 5, synthetic=True),))
    text, data_file = save_calibration(found, folder)

    def parse(data: bytes) -> None:
        for path, part in zip((text, data_file), parted(data), strict=True):
            path.unlink()  # the statistics of the last input may still be mapped
            path.write_bytes(part)
        read = load_calibration(folder)
        for side in (read.user, read.item):
            for weight in side.feeds:
                side.of(weight)

    return Parser(parse, (joined(text.read_bytes(), data_file.read_bytes()),), _either)


def _checkpoint(folder: Path, shard_bytes: int = 1 << 30) -> Path:
    recipe, declared, out = folder / "small.yaml", folder / "features.json", folder / "checkpoint"
    recipe.write_text(RECIPE)
    declared.write_text(json.dumps(FEATURES))
    write_random_checkpoint(load_recipe(str(recipe)), out, dtype="fp32", shard_bytes=shard_bytes, features=declared)
    return out


def _either(data: bytes, rng: random.Random) -> bytes:
    text, tensors = parted(data)
    if rng.random() < 0.5:
        return joined(mutate_json(text, rng), tensors)
    return joined(text, mutate_safetensors(tensors, rng))

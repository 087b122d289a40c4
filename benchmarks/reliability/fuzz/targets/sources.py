"""What builds and the quant commands read: checkpoints, requests, recipes, settings, statistics, policies, graphs."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import yaml

from benchmarks.reliability.fuzz.attack import Attack, Run
from benchmarks.reliability.fuzz.inputs import Inputs, replace
from benchmarks.reliability.fuzz.mutate.json_values import mutate_json
from benchmarks.reliability.fuzz.mutate.onnx_graphs import mutate_onnx
from benchmarks.reliability.fuzz.mutate.request_files import mutate_npz, mutate_table
from benchmarks.reliability.fuzz.mutate.safetensors_files import mutate_safetensors
from benchmarks.reliability.fuzz.mutate.yaml_text import mutate_setting, mutate_yaml

__all__ = [
    "arrow", "calibration", "checkpoint_config", "checkpoint_weights", "features", "graph", "npz", "parquet",
    "policy", "recipe", "setting",
]  # fmt: skip


def graph(inputs: Inputs, folder: Path, _: int, rng: random.Random) -> Attack:
    """A mutated ONNX file in a folder of graphs."""
    graphs = Path(shutil.copytree(inputs.bundle / "onnx", folder / "onnx"))
    path = rng.choice(sorted(graphs.glob("*.onnx")))
    replace(path, mutate_onnx(path.read_bytes(), rng))
    out = folder / "out"
    runs = (
        Run("quant", ("inspect", str(path))),
        Run("quant", ("weights", str(graphs), "--scheme", "absmax", "--out", str(out)), writes=out),
        Run("quant", ("calibrate", str(graphs), "--synthetic", "1", "--out", str(out)), writes=out),
    )
    return Attack((runs[0], rng.choice(runs[1:])) if rng.random() < 0.5 else (rng.choice(runs),))


def checkpoint_config(inputs: Inputs, folder: Path, _: int, rng: random.Random) -> Attack:
    """A checkpoint with a mutated config.json."""
    checkpoint = Path(shutil.copytree(inputs.checkpoint, folder / "checkpoint"))
    config = checkpoint / "config.json"
    replace(config, mutate_json(config.read_bytes(), rng))
    return _checkpoint(inputs, folder, checkpoint, rng)


def checkpoint_weights(inputs: Inputs, folder: Path, _: int, rng: random.Random) -> Attack:
    """A checkpoint with a mutated safetensors file or index."""
    checkpoint = Path(shutil.copytree(inputs.checkpoint, folder / "checkpoint"))
    files = sorted(path for path in checkpoint.iterdir() if path.name != "config.json")
    path = rng.choice(files)
    data = path.read_bytes()
    replace(path, mutate_json(data, rng) if path.suffix == ".json" else mutate_safetensors(data, rng))
    return _checkpoint(inputs, folder, checkpoint, rng)


def _checkpoint(inputs: Inputs, folder: Path, checkpoint: Path, rng: random.Random) -> Attack:
    text, out = str(checkpoint), folder / "out"
    if rng.random() < 0.03:
        given, sound = (
            ("stream", str(inputs.recipe), "--checkpoint", path, "--out", str(out))
            for path in (text, str(inputs.checkpoint))
        )
        return Attack((Run("ugsep", given, writes=out, resumed_by=sound),))
    return Attack((Run("checkpoint", (text,)),))


def features(inputs: Inputs, folder: Path, _: int, rng: random.Random) -> Attack:
    """A mutated features.json."""
    path = folder / "features.json"
    path.write_bytes(mutate_json(inputs.features.read_bytes(), rng))
    return Attack((_random_checkpoint(inputs.recipe, path, folder),))


def recipe(inputs: Inputs, folder: Path, _: int, rng: random.Random) -> Attack:
    """A mutated recipe file."""
    path = folder / "small.yaml"
    path.write_bytes(mutate_yaml(inputs.recipe.read_text(), rng))
    if rng.random() < 0.4:
        return Attack((_random_checkpoint(path, inputs.features, folder),))
    return Attack((_missing_checkpoint(path, folder),))


def setting(inputs: Inputs, folder: Path, _: int, rng: random.Random) -> Attack:
    """One or two mutated ``--set`` options."""
    document = yaml.safe_load(inputs.recipe.read_text())
    keys = [f"{section}.{key}" for section, values in document.items() if isinstance(values, dict) for key in values]
    keys += ["model", "serving", "serving.options.onnxruntime.threads", "gates.invariance", "config.features"]
    given = [part for _ in range(rng.choice((1, 1, 2))) for part in ("--set", mutate_setting(rng.choice(keys), rng))]
    return Attack((_missing_checkpoint(inputs.recipe, folder, given),))


def calibration(inputs: Inputs, folder: Path, _: int, rng: random.Random) -> Attack:
    """Mutated statistics: the JSON file or the tensors."""
    copied = Path(shutil.copytree(inputs.calibration, folder / "calibration"))
    path = rng.choice(sorted(copied.iterdir()))
    data = path.read_bytes()
    replace(path, mutate_json(data, rng) if path.suffix == ".json" else mutate_safetensors(data, rng))
    out = folder / "out"
    if rng.random() < 0.3:
        return Attack((Run("quant", ("merge", str(copied), "--out", str(out)), writes=out),))
    given = ("--scheme", rng.choice(("mse", "awq")), "--calibration", str(copied))
    return Attack((Run("quant", ("weights", str(inputs.bundle), *given, "--out", str(out)), writes=out),))


def policy(inputs: Inputs, folder: Path, _: int, rng: random.Random) -> Attack:
    """A mutated policy of precisions."""
    path, out = folder / "policy.yaml", folder / "out"
    path.write_bytes(mutate_yaml(inputs.policy.read_text(), rng))
    given = ("--scheme", "absmax", "--policy", str(path))
    return Attack((Run("quant", ("weights", str(inputs.bundle), *given, "--out", str(out)), writes=out),))


def parquet(inputs: Inputs, folder: Path, _: int, rng: random.Random) -> Attack:
    """A mutated Parquet file of requests."""
    return _requests(inputs, folder, "parquet", mutate_table(inputs.table, "parquet", rng), rng)


def arrow(inputs: Inputs, folder: Path, _: int, rng: random.Random) -> Attack:
    """A mutated Arrow file or stream of requests."""
    return _requests(inputs, folder, "arrow", mutate_table(inputs.table, "arrow", rng), rng)


def npz(inputs: Inputs, folder: Path, _: int, rng: random.Random) -> Attack:
    """A mutated npz archive of requests."""
    return _requests(inputs, folder, "npz", mutate_npz(inputs.arrays, rng), rng)


def _requests(inputs: Inputs, folder: Path, suffix: str, data: bytes, rng: random.Random) -> Attack:
    path, out = folder / f"requests.{suffix}", folder / "out"
    path.write_bytes(data)
    bundle = str(inputs.bundle)
    calibrate, sound = (
        ("calibrate", bundle, "--data", data, "--out", str(out)) for data in (str(path), str(inputs.requests))
    )
    others = (
        Run("ugsep", ("replay", bundle, "--requests", str(path))),
        Run("quant", calibrate, writes=out, resumed_by=(*sound, "--restart")),
        Run("ugsep", ("bisect", bundle, "--requests", str(path))),
    )
    return Attack((Run("columns", (bundle, str(path))), rng.choice(others)))


def _random_checkpoint(recipe_file: Path, features_file: Path, folder: Path) -> Run:
    out = folder / "random"
    given = ("random-checkpoint", str(recipe_file), "--features", str(features_file), "--out", str(out))
    return Run("ugsep", given, writes=out)


def _missing_checkpoint(recipe_file: Path, folder: Path, more: list[str] | None = None) -> Run:
    """Return a build that ends after it has read the recipe: whatever that says, the checkpoint is missing."""
    missing = ("--checkpoint", str(folder / "missing"), "--out", str(folder / "out"))
    return Run("ugsep", ("build", str(recipe_file), *missing, *(more or ())), writes=folder / "out")

"""Bundles with mutated files: the manifest, files whose hash no longer fits, and files hashed again."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np

from benchmarks.reliability.fuzz.attack import Attack, Run
from benchmarks.reliability.fuzz.inputs import Inputs, copy_bundle, replace, reseal
from benchmarks.reliability.fuzz.mutate.byte_level import mutate_bytes
from benchmarks.reliability.fuzz.mutate.json_values import mutate_json
from benchmarks.reliability.fuzz.mutate.onnx_graphs import mutate_onnx
from benchmarks.reliability.fuzz.mutate.safetensors_files import mutate_safetensors
from benchmarks.reliability.fuzz.mutate.yaml_text import mutate_yaml
from benchmarks.reliability.fuzz.worker import Ended
from engines.bundle.files import MANIFEST

__all__ = ["damaged_file", "engine_file", "manifest", "model_file", "side_file"]

#: Change of a probability: twice what the gate of the inputs' recipe lets pass, once for each side of a comparison.
TOLERANCE = 0.04


def manifest(inputs: Inputs, folder: Path, _: int, rng: random.Random) -> Attack:
    """A mutated manifest, not sealed again."""
    bundle = copy_bundle(inputs, folder)
    sound = (bundle / MANIFEST).read_bytes()
    changed = mutate_json(sound, rng)
    replace(bundle / MANIFEST, changed)

    def wrong(ended: list[Ended]) -> str:
        return "a changed manifest verifies" if changed != sound and ended[0].status == 0 else ""

    return Attack((Run("ugsep", ("verify", str(bundle))), *_readers(inputs, bundle, folder, rng)), wrong)


def damaged_file(inputs: Inputs, folder: Path, _: int, rng: random.Random) -> Attack:
    """A file of the bundle with changed bytes, or one too many or too few; the manifest as it was."""
    bundle = copy_bundle(inputs, folder)
    path = _file(bundle, rng)
    sound = path.read_bytes()
    kind = rng.randrange(6)
    if kind == 0:
        path.unlink()
    elif kind == 1:
        (bundle / rng.choice(("extra", "onnx/extra.onnx", "\x1b[1m", "a\nb"))).write_bytes(b"x")
    elif kind == 2:
        path.unlink()
        path.symlink_to(rng.choice((inputs.bundle / path.relative_to(bundle), Path("/dev/zero"), path)))
    elif kind == 3:
        path.unlink()
        path.mkdir()
    else:
        replace(path, mutate_bytes(sound, rng))
    unchanged = kind > 3 and path.read_bytes() == sound

    def wrong(ended: list[Ended]) -> str:
        return "a damaged bundle verifies" if not unchanged and ended[0].status == 0 else ""

    return Attack((Run("ugsep", ("verify", str(bundle))), *_readers(inputs, bundle, folder, rng)), wrong)


def engine_file(inputs: Inputs, folder: Path, _: int, rng: random.Random) -> Attack:
    """A mutated file of an engine, hashed again: it loads and scores as before, or it is refused by somebody."""
    bundle = copy_bundle(inputs, folder)
    path = rng.choice(sorted((bundle / "engines").rglob("*.onnx*")))
    replace(path, _mutated(path, rng))
    reseal(bundle, str(path.relative_to(bundle)))
    out = folder / "scores.npz"
    validated = Run(
        "ugsep", ("validate", str(bundle), "--requests", str(inputs.requests), "--worst", f"{folder}/worst")
    )
    scored = Run("scores", (str(bundle), str(inputs.requests), str(out)), writes=out)
    others = _readers(inputs, bundle, folder, rng)

    def wrong(ended: list[Ended]) -> str:
        if ended[0].status or ended[1].status:
            return ""
        with np.load(out) as found:
            error = max(
                np.abs(_sigmoid(found[task]) - _sigmoid(value)).max() for task, value in inputs.scores.items()
            )
        return "" if error <= TOLERANCE else "wrong scores pass"

    return Attack((scored, validated, *others), wrong)


def model_file(inputs: Inputs, folder: Path, _: int, rng: random.Random) -> Attack:
    """A mutated FP32 or quantized graph of a bundle, hashed again."""
    bundle = copy_bundle(inputs, folder)
    path = rng.choice([p for p in sorted((bundle / "onnx").iterdir()) if p.stat().st_size])
    replace(path, _mutated(path, rng))
    reseal(bundle, str(path.relative_to(bundle)))
    return Attack(_readers(inputs, bundle, folder, rng, heavy=0.1))


def side_file(inputs: Inputs, folder: Path, _: int, rng: random.Random) -> Attack:
    """A mutated report, recipe, fixture or statistics file of a bundle, hashed again."""
    bundle = copy_bundle(inputs, folder)
    name = rng.choice(
        ("report.json", "recipe.yaml", "fixtures.json", "fixtures.safetensors", "calibration.json", "report.html")
    )
    path = bundle / name
    replace(path, _mutated(path, rng))
    reseal(bundle, name)
    program = {"fixtures": "fixtures"}.get(name.partition(".")[0], "report")
    return Attack((Run(program, (str(bundle),)), *_readers(inputs, bundle, folder, rng, heavy=0.05)))


def _mutated(path: Path, rng: random.Random) -> bytes:
    data = path.read_bytes()
    if path.suffix == ".onnx":
        return mutate_onnx(data, rng)
    if path.suffix == ".json":
        return mutate_json(data, rng)
    if path.suffix == ".yaml":
        return mutate_yaml(data.decode(), rng)
    return mutate_safetensors(data, rng) if path.suffix == ".safetensors" else mutate_bytes(data, rng)


def _readers(inputs: Inputs, bundle: Path, folder: Path, rng: random.Random, heavy: float = 0.02) -> tuple[Run, ...]:
    """Return one or two commands that read a bundle; a heavy one with this probability."""
    text = str(bundle)
    weights, statistics = folder / "weights", folder / "statistics"  # two that run leave nothing of each other's
    light = (
        Run("ugsep", ("inspect", text)),
        Run("ugsep", ("inspect", text, "--json")),
        Run("quant", ("inspect", text)),
        Run("scores", (text, str(inputs.requests), str(folder / "again.npz")), writes=folder / "again.npz"),
        Run("ugsep", ("bisect", text)),
        Run("quant", ("weights", text, "--scheme", "absmax", "--out", str(weights)), writes=weights),
        Run("quant", ("calibrate", text, "--synthetic", "1", "--out", str(statistics)), writes=statistics),
        Run("ugsep", ("replay", text, "--requests", str(inputs.requests))),
    )
    chosen = rng.sample(light, rng.choice((1, 1, 2)))
    if rng.random() < heavy:
        chosen.append(Run("ugsep", ("validate", text, "--synthetic", "--worst", f"{folder}/worst")))
    return tuple(chosen)


def _file(bundle: Path, rng: random.Random) -> Path:
    return rng.choice([path for path in sorted(bundle.rglob("*")) if path.is_file() and path.name != MANIFEST])


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-logits.astype(np.float64)))

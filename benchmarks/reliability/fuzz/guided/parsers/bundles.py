"""Files of a bundle: the manifest, the fixtures and the report."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np

from benchmarks.reliability.fuzz.guided.parser import Parser, joined, parted
from benchmarks.reliability.fuzz.guided.parsers.sound import ITEM, TASK, USER, sound_arrays, sound_manifest
from benchmarks.reliability.fuzz.mutate.json_values import mutate_json
from benchmarks.reliability.fuzz.mutate.safetensors_files import mutate_safetensors
from engines.bundle.digest import UNSEALED, digest_of
from engines.bundle.files import MANIFEST
from engines.bundle.fixture_file import Fixture, Fixtures, save_fixtures
from engines.bundle.fixtures import EXAMPLES, read_examples
from engines.bundle.manifest import engine_for, read_manifest, write_manifest
from engines.bundle.report_file import read_report
from graphs.base.names import USER_INDEX

__all__ = ["fixtures", "manifest", "report"]

_REPORT = {
    "model": "small",
    "backend": "onnxruntime",
    "passed": True,
    "targets": [{"name": "sqnr_db", "value": 40.5, "bound": None, "relation": ">=", "passed": True}],
    "latency": {"candidates": 9, "speedup": 1.5, "limit": 2.5, "request": {"p50": 0.5, "p90": 0.75, "p99": 1.0}},
    "weights": {"fp32_bytes": 4096, "quantized_bytes": 1024},
    "auc": {"fp32": {"like": 0.75}, "split": {"like": 0.75}, "quantized": {"like": None}},
    "split": {
        **{side: {"flops": 1000, "weight_bytes": 4096} for side in ("user", "item", "full")},
        "state_bytes_per_user": 32,
    },
}


def manifest(folder: Path) -> Parser:
    """A manifest, sealed again: a changed one would otherwise be refused for its digest and nothing else."""
    for name in ("user", "item"):
        (folder / "engines" / name).mkdir(parents=True)
        (folder / "engines" / name / f"{name}.onnx").write_bytes(b"abc")
    digest = write_manifest(folder, sound_manifest()).digest.encode()
    sound = (folder / MANIFEST).read_bytes().replace(digest, UNSEALED.encode())

    def parse(data: bytes) -> None:
        (folder / MANIFEST).write_bytes(data.replace(UNSEALED.encode(), digest_of(data).encode(), 1))
        found = read_manifest(folder)
        for side in ("user", "item"):
            engine_for(found, side)

    return Parser(parse, (sound,), mutate_json)


def fixtures(folder: Path) -> Parser:
    """Both files of the fixtures, against the manifest of a sound bundle."""
    requests = []
    for name, users, candidates in (("one", 1, 1), ("few", 2, 3)):
        arrays = sound_arrays(users, candidates)
        logits = np.linspace(-1, 1, candidates, dtype=np.float32)
        requests.append(
            Fixture(
                name,
                user={spec.name: arrays[spec.name] for spec in USER},
                items={spec.name: arrays[spec.name] for spec in ITEM},
                user_index=arrays.get(USER_INDEX),
                expected={TASK.name: logits},
                reference={TASK.name: logits + 1},
                label=f"user {users}",
            )
        )
    found = Fixtures(tuple(requests), {TASK.name: 1e-5}, {"item_id": {"50": "Star Wars (1977)"}})
    save_fixtures(folder, EXAMPLES, found)
    text, tensors = folder / f"{EXAMPLES}.json", folder / f"{EXAMPLES}.safetensors"
    sound, described = joined(text.read_bytes(), tensors.read_bytes()), sound_manifest()

    def parse(data: bytes) -> None:
        for path, part in zip((text, tensors), parted(data), strict=True):
            path.write_bytes(part)
        read_examples(folder, described)

    return Parser(parse, (sound,), _either)


def report(folder: Path) -> Parser:
    """The report of a bundle, as commands and the page read it."""

    def parse(data: bytes) -> None:
        (folder / "report.json").write_bytes(data)
        read_report(folder)

    return Parser(parse, (json.dumps(_REPORT).encode(),), mutate_json)


def _either(data: bytes, rng: random.Random) -> bytes:
    text, tensors = parted(data)
    if rng.random() < 0.6:
        return joined(mutate_json(text, rng), tensors)
    return joined(text, mutate_safetensors(tensors, rng))

"""The sound files that are mutated: a small model as every kind of file that a command reads."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.reliability.fuzz.mutate.request_files import npz_bytes
from benchmarks.reliability.fuzz.sound_texts import FEATURES, POLICY, RECIPE
from benchmarks.reliability.fuzz.worker import Ended, Worker
from engines.bundle.bundle import Bundle
from engines.bundle.digest import UNSEALED, seal
from engines.bundle.files import MANIFEST
from graphs.base.errors import UgsepError

__all__ = ["Inputs", "copy_bundle", "make_bundle", "make_inputs", "replace", "reseal"]

REQUESTS, CANDIDATES = 5, 6


@dataclass(frozen=True)
class Inputs:
    """Sound files in one folder, and the requests as columns, one row per candidate; ``scores`` are theirs."""

    folder: Path
    arrays: dict[str, np.ndarray]
    table: pa.Table
    scores: dict[str, np.ndarray]

    @property
    def bundle(self) -> Path:
        """A bundle that no try may change."""
        return self.folder / "bundle"

    @property
    def recipe(self) -> Path:
        """The recipe of the bundle."""
        return self.folder / "small.yaml"

    @property
    def features(self) -> Path:
        """Its features.json."""
        return self.folder / "features.json"

    @property
    def policy(self) -> Path:
        """A policy of precisions."""
        return self.folder / "policy.yaml"

    @property
    def checkpoint(self) -> Path:
        """A checkpoint of the same model."""
        return self.folder / "checkpoint"

    @property
    def calibration(self) -> Path:
        """Statistics of the bundle's graphs."""
        return self.folder / "calibration"

    @property
    def requests(self) -> Path:
        """Sound requests."""
        return self.folder / "requests.npz"


def make_inputs(folder: Path, worker: Worker) -> Inputs:
    """Write all files with the real commands.

    Raises:
        UgsepError: a command failed.
    """
    random_model, bundle = make_bundle(folder, worker)
    (folder / "policy.yaml").write_text(POLICY)
    checkpoint = str(folder / "checkpoint")
    _sound(worker, "ugsep", ["random-checkpoint", *random_model, "--out", checkpoint, "--dtype", "fp32"])
    _sound(worker, "quant", ["calibrate", bundle, "--synthetic", "3", "--out", str(folder / "calibration")])
    requests = list(Bundle.open(Path(bundle)).synthetic_requests(REQUESTS, CANDIDATES, seed=3))
    rows = [request.candidates for request in requests]
    arrays = {"request_id": np.repeat([request.request_id for request in requests], rows).astype(np.int64)}
    for name in requests[0].user:
        arrays[name] = np.concatenate([np.repeat(r.user[name], r.candidates, axis=0) for r in requests])
    for name in requests[0].items:
        arrays[name] = np.concatenate([r.items[name] for r in requests])
    arrays["like"] = (np.arange(sum(rows)) % 3 == 0).astype(np.float32)
    (folder / "requests.npz").write_bytes(npz_bytes(arrays, random.Random(0)))
    out = folder / "scores.npz"
    _sound(worker, "scores", [bundle, str(folder / "requests.npz"), str(out)])
    with np.load(out) as scores:
        return Inputs(folder, arrays, _table(arrays), dict(scores))


def make_bundle(folder: Path, worker: Worker) -> tuple[list[str], str]:
    """Build a bundle of a small random model; return the arguments that name the model, and the bundle's path.

    Raises:
        UgsepError: the build failed.
    """
    (folder / "small.yaml").write_text(RECIPE)
    (folder / "features.json").write_text(json.dumps(FEATURES))
    random_model = [str(folder / "small.yaml"), "--features", str(folder / "features.json")]
    bundle = str(folder / "bundle")
    _sound(worker, "ugsep", ["build", *random_model, "--init", "random", "--out", bundle, "--no-cache"])
    return random_model, bundle


def copy_bundle(inputs: Inputs, folder: Path) -> Path:
    """Return a copy whose files are links to the sound ones: ``replace`` them, never write into them."""
    return Path(shutil.copytree(inputs.bundle, folder / "bundle", copy_function=os.link))


def replace(path: Path, data: bytes) -> None:
    """Give a path another content without touching the file that was there."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def reseal(bundle: Path, name: str) -> None:
    """Write size and hash of a changed file into the manifest and seal it, as senders of bad bundles would."""
    data = (bundle / name).read_bytes()
    manifest = json.loads((bundle / MANIFEST).read_bytes())
    manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest["digest"] = UNSEALED
    replace(bundle / MANIFEST, seal(json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode())


def _sound(worker: Worker, program: str, arguments: list[str]) -> Ended:
    ended = worker.run(program, arguments)
    if ended.status != 0:
        said = ended.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise UgsepError(f"cannot prepare the campaign: {program} {arguments[0]} ended with {ended.status}: {said}")
    return ended


def _table(arrays: dict[str, np.ndarray]) -> pa.Table:
    columns = {}
    for name, value in arrays.items():
        flat = pa.array(value.reshape(-1))
        columns[name] = flat if value.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, value.shape[1])
    return pa.table(columns)

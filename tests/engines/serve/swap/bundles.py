"""Bundles that replace each other: two models of the same shape, other versions of them, and damaged ones."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engines.bundle.manifest import Manifest, engine_for, read_manifest, write_manifest
from engines.bundle.publish import publish
from engines.serve.core.served_bundle import ServedBundle
from engines.serve.ranker import Ranker
from engines.serve.swap.snapshot import manifest_version
from tests import tiny
from tests.manifests import write_raw

Scores = Mapping[str, NDArray[np.generic]]
USERS = 4
CANDIDATES = 5


def request(user: int) -> tuple[Scores, Scores]:
    """The features of one of a few users, and of candidates that are the same for all."""
    return tiny.user_and_items(CANDIDATES, seed=user)[0], tiny.user_and_items(CANDIDATES, seed=99)[1]


def expected(bundle: Path) -> list[NDArray[np.generic]]:
    """The scores of each user in one bundle."""
    with Ranker.from_bundle(bundle) as ranker:
        return [ranker.score(*request(user))["like"] for user in range(USERS)]


def scores(served: ServedBundle) -> list[NDArray[np.generic]]:
    """The scores of each user in a loaded bundle."""
    return [served.ranker.score(*request(user))["like"] for user in range(USERS)]


def put(source: Path, path: Path, change: Callable[[Path], object] = lambda work: None) -> str:
    """Publish a copy of a bundle, changed, at a path; return its version."""
    with publish(path, timeout=30) as work:
        shutil.copytree(source, work, dirs_exist_ok=True)
        change(work)
    return manifest_version(path)


def renamed(version: str) -> Callable[[Path], object]:
    """A change that gives a bundle another manifest, and so another version, with the same engines."""

    def change(work: Path) -> None:
        edit_manifest(work, lambda manifest: dataclasses.replace(manifest, content_key=version))

    return change


def edit_manifest(bundle: Path, change: Callable[[Manifest], Manifest]) -> None:
    """Write a changed manifest, without hashing the files again."""
    write_raw(bundle, dataclasses.asdict(change(read_manifest(bundle))))


def engine_file(bundle: Path, side: str) -> Path:
    """The main graph of the chosen engine of one side."""
    engine = engine_for(read_manifest(bundle), side)
    return bundle / engine.directory / f"{side}.onnx"


def hashed_again(change: Callable[[Path], object]) -> Callable[[Path], object]:
    """The same change, with a manifest whose hashes are right again."""

    def whole(bundle: Path) -> None:
        change(bundle)
        write_manifest(bundle, read_manifest(bundle))

    return whole


def flip_a_byte(file: Path) -> None:
    """Change one byte in the middle of a file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def cut(file: Path) -> None:
    """Cut a file in half."""
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

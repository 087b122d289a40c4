"""``manifest.json``: the content of a bundle, typed, strictly parsed, and checked before anything is loaded."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engines.backends.built_engine import BuiltEngine
from engines.bundle.digest import UNSEALED, check_digest, seal, short_digest
from engines.bundle.document import parse_document, read_file
from engines.bundle.files import MANIFEST, FileEntry, hash_files
from engines.bundle.limits import check_batching, check_built, check_files, check_path, check_rows
from graphs.base.config import check_plain, parse
from graphs.base.errors import UgsepError
from graphs.base.json_words import shown

__all__ = ["FORMAT_VERSION", "BatchTiming", "Engine", "Manifest", "engine_for", "read_manifest", "write_manifest"]

FORMAT_VERSION = 4
_FIX = "build the bundle again"


@dataclass(frozen=True)
class Engine:
    """One built engine and its directory, relative to the bundle."""

    directory: str
    built: BuiltEngine


@dataclass(frozen=True)
class BatchTiming:
    """Milliseconds to score ``users`` requests of ``candidates`` candidates each: one by one, and in one item call.

    Lower quartiles of interleaved calls; the user states were cached in both.
    """

    users: int
    candidates: int
    separate_ms: float
    batched_ms: float

    @property
    def speedup(self) -> float:
        """How much faster the shared call is; below 1 it is slower."""
        return self.separate_ms / self.batched_ms


@dataclass(frozen=True)
class Manifest:
    """The description of a bundle.

    ``choice`` is the directory of the engine that serves each side; ``reasons`` explains it in a line per side if the
    build chose by measuring. ``calibration`` is the sha256 of the samples, empty without samples; ``synthetic`` is
    true if weights or samples are random. ``vocabularies``: rows of each id input's embedding table; larger ids are
    rejected. ``content_key`` is the sha256 of everything the bundle was built from: a build with the same key
    is skipped. ``passed``: whether every gate held. ``batching``: what sharing item calls gained on the
    build's machine, by users, then candidates; empty if the item engine serves one user per call. ``digest`` names
    the whole bundle (see ``engines.bundle.digest``); it is set when the manifest is written.
    """

    model: str
    rebuild: str
    opset: int
    engines: tuple[Engine, ...]
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    tools: Mapping[str, str] = field(default_factory=dict)
    host: Mapping[str, str] = field(default_factory=dict)
    choice: Mapping[str, str] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    calibration: str = ""
    synthetic: bool = False
    vocabularies: Mapping[str, int] = field(default_factory=dict)
    content_key: str = ""
    passed: bool = False
    batching: tuple[BatchTiming, ...] = ()
    version: int = FORMAT_VERSION
    digest: str = UNSEALED

    @property
    def short_digest(self) -> str:
        """The first 12 digits of the digest, the version of the model that a server names."""
        return short_digest(self.digest)


def engine_for(manifest: Manifest, side: str, backend: str | None = None, precision: str | None = None) -> Engine:
    """Return the engine of one side: the chosen one, or the first with a given backend and precision.

    Raises:
        UgsepError: the bundle has no such engine.
    """
    for engine in manifest.engines:
        if engine.built.side != side:
            continue
        if backend is None and precision is None:
            if manifest.choice.get(side, engine.directory) == engine.directory:
                return engine
        elif engine.built.backend == (backend or engine.built.backend) and (
            engine.built.precision == (precision or engine.built.precision)
        ):
            return engine
    held = ", ".join(f"{e.built.side}/{e.built.backend}/{e.built.precision}" for e in manifest.engines) or "none"
    asked = [f"{name} '{value}'" for name, value in (("backend", backend), ("precision", precision)) if value]
    raise UgsepError(
        f"the bundle of '{manifest.model}' has no {side} engine{' with ' if asked else ''}{' and '.join(asked)}; "
        f"it has {held}; build it: {manifest.rebuild}"
    )


def write_manifest(directory: Path, manifest: Manifest) -> Manifest:
    """Hash every file under ``directory`` into the manifest, write it with its digest, and return it complete."""
    complete = dataclasses.replace(manifest, files=hash_files(directory), digest=UNSEALED)
    content = seal(json.dumps(dataclasses.asdict(complete), indent=1, sort_keys=True) + "\n").encode()
    (directory / MANIFEST).write_bytes(content)
    return dataclasses.replace(complete, digest=check_digest(directory / MANIFEST, content))


def read_manifest(directory: Path, digest: str | None = None) -> Manifest:
    """Parse a bundle's manifest; no other file of the bundle is touched.

    Its own digest is checked first, and the one that the caller pinned, if any.

    Raises:
        UgsepError: no manifest, another digest, not JSON, unsupported version, an unknown or missing field, a wrong
            type, a path out of the bundle, or a shape or size out of range.
    """
    path = directory / MANIFEST
    content = read_file(directory, MANIFEST, ", so not a bundle; build one with 'ugsep build'", _FIX)
    held = check_digest(path, content, digest)
    raw = parse_document(content, path, _FIX)
    _check_version(path, raw)
    if not held or raw.get("digest") != held:  # a field of the same name may lie deeper
        raise UgsepError(f"{path}: has no digest of its own; {_FIX}")
    try:
        check_plain(raw, "manifest")
        manifest = parse(Manifest, raw, "manifest", complete=True)
    except UgsepError as error:
        raise UgsepError(f"{path}: {error}; {_FIX}") from error
    _check_sane(path, manifest)
    return manifest


def _check_version(path: Path, raw: Mapping[str, Any]) -> None:
    version = raw.get("version")
    if type(version) is not int or version < FORMAT_VERSION:
        raise UgsepError(
            f"{path}: manifest version is {shown(version)}; this ugsep reads {FORMAT_VERSION}; build the bundle again"
        )
    if version > FORMAT_VERSION:
        raise UgsepError(
            f"{path}: manifest version {shown(version)} is newer than {FORMAT_VERSION}, the newest this ugsep reads; "
            "upgrade: pip install -U ugsep"
        )


def _check_sane(path: Path, manifest: Manifest) -> None:
    check_files(path, manifest.files)
    for engine in manifest.engines:
        check_path(path, engine.directory)
        check_built(path, f"{engine.directory}/", engine.built, manifest.files)
    for name, rows in manifest.vocabularies.items():
        check_rows(path, f"the table of '{name}'", rows)
    check_batching(path, [(t.users, t.candidates, t.separate_ms, t.batched_ms) for t in manifest.batching])
    directories = {(e.built.side, e.directory) for e in manifest.engines}
    for side, directory in manifest.choice.items():
        if (side, directory) not in directories:
            raise UgsepError(f"{path}: the chosen {side} engine '{directory}' is not in the bundle; {_FIX}")

"""``manifest.json``: what a bundle contains, typed, parsed strictly, and checked before anything is loaded."""

from __future__ import annotations

import dataclasses
import json
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from engines.backends.contract import BuiltEngine, Option, Profile, TensorSpec
from engines.bundle.files import MANIFEST, FileEntry, _reason, hash_file
from graphs.base.config import check_plain, parse, unique_names
from graphs.base.errors import UgsepError

FORMAT_VERSION = 1
WHY = "why"  # with a side after it, the key in ``extra`` that says why its engine was chosen, where it was measured
_MAX_MANIFEST_BYTES = 64 << 20
_MAX_FILE_BYTES = 1 << 42  # 4 TiB: beyond any model, below what breaks arithmetic
_MAX_RANK = 8
_MAX_DIM = 1 << 31
_MAX_SETTING = 4096  # threads, streams, sizes of a group


@dataclass(frozen=True)
class Engine:
    """One built engine and the directory, relative to the bundle, that holds its files."""

    directory: str
    built: BuiltEngine


@dataclass(frozen=True)
class Manifest:
    """Everything a bundle says of itself; ``extra`` is free-form and never needed to load.

    ``choice`` names the engine that serves each side, as ``side -> directory``. ``calibration`` is the sha256
    of the samples, empty where none were used; ``synthetic`` is true where weights or samples are random.
    ``vocabularies``: rows of the table behind each id input, where ids beyond it must be refused.
    """

    model: str
    rebuild: str
    opset: int
    engines: tuple[Engine, ...]
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    tools: Mapping[str, str] = field(default_factory=dict)
    host: Mapping[str, str] = field(default_factory=dict)
    choice: Mapping[str, str] = field(default_factory=dict)
    calibration: str = ""
    synthetic: bool = False
    vocabularies: Mapping[str, int] = field(default_factory=dict)
    extra: Mapping[str, Option] = field(default_factory=dict)
    version: int = FORMAT_VERSION


def engine_for(manifest: Manifest, side: str, backend: str | None = None, precision: str | None = None) -> Engine:
    """Return the engine of one side: the chosen one, or the first of a given backend and precision.

    Raises:
        UgsepError: the bundle holds no such engine.
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
    raise UgsepError(
        f"the bundle of '{manifest.model}' has no {side} engine for backend '{backend or 'any'}', precision "
        f"'{precision or 'any'}'; it holds {held}; build it: {manifest.rebuild}"
    )


def write_manifest(directory: Path, manifest: Manifest) -> Manifest:
    """Hash every file under ``directory`` into the manifest, write it, and return it complete."""
    found = sorted(path for path in directory.rglob("*") if path.is_file() and path.name != MANIFEST)
    files = {path.relative_to(directory).as_posix(): hash_file(path) for path in found}
    complete = dataclasses.replace(manifest, files=files)
    text = json.dumps(dataclasses.asdict(complete), indent=1, sort_keys=True)
    (directory / MANIFEST).write_text(text + "\n", encoding="utf-8")
    return complete


def read_manifest(directory: Path) -> Manifest:
    """Parse a bundle's manifest; nothing else of the bundle is touched.

    Raises:
        UgsepError: no manifest, no JSON, another version, an unknown or missing field, a wrong type, a path
            that leaves the bundle, or an absurd shape or size.
    """
    path = directory / MANIFEST
    try:
        if not path.resolve().is_relative_to(directory.resolve()):
            raise UgsepError(f"{path}: a link leads out of the bundle; do not use this bundle")
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # reading a pipe would never end
            raise UgsepError(f"{path}: not a file; build the bundle again")
        if found.st_size > _MAX_MANIFEST_BYTES:
            raise UgsepError(f"{path}: {found.st_size} bytes is no manifest; build the bundle again")
        text = path.read_text(encoding="utf-8")
        raw = json.loads(text, object_pairs_hook=unique_names, parse_constant=_no_constant)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UgsepError(f"{directory}: no {MANIFEST}, so no bundle; build one with 'ugsep build'") from error
    except (ValueError, RecursionError) as error:
        raise UgsepError(f"{path}: not valid JSON ({error}); build the bundle again") from error
    except (OSError, RuntimeError) as error:  # RuntimeError: a link that leads to itself
        raise UgsepError(f"{path}: cannot read it ({_reason(error)}); build the bundle again") from error
    if not isinstance(raw, dict):
        raise UgsepError(f"{path}: not a JSON object; build the bundle again")
    _check_version(path, raw)
    try:
        check_plain(raw, "manifest")
        manifest = parse(Manifest, raw, "manifest", complete=True)
    except UgsepError as error:
        raise UgsepError(f"{path}: {error}; build the bundle again") from error
    _check_sane(path, manifest)
    return manifest


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _check_version(path: Path, raw: Mapping[str, Any]) -> None:
    version = raw.get("version")
    if type(version) is not int or version < 1:
        raise UgsepError(f"{path}: manifest version is {version!r}; this ugsep reads {FORMAT_VERSION}; rebuild it")
    if version > FORMAT_VERSION:
        raise UgsepError(
            f"{path}: manifest version {version} is newer than {FORMAT_VERSION}, the newest this ugsep reads; "
            "upgrade: pip install -U ugsep"
        )


def _check_sane(path: Path, manifest: Manifest) -> None:
    for name, entry in manifest.files.items():
        _check_relative(path, name)
        if not 0 <= entry.bytes <= _MAX_FILE_BYTES:
            raise UgsepError(f"{path}: '{name}' of {entry.bytes} bytes is absurd; build the bundle again")
        if len(entry.sha256) != 64 or set(entry.sha256) - set("0123456789abcdef"):
            raise UgsepError(f"{path}: '{name}' has no valid sha256; build the bundle again")
    for engine in manifest.engines:
        _check_relative(path, engine.directory)
        for name in engine.built.files:
            whole = f"{engine.directory}/{name}"
            _check_relative(path, whole)
            if whole not in manifest.files:
                raise UgsepError(f"{path}: engine file '{whole}' is not among the hashed files; build it again")
        for spec in (*engine.built.inputs, *engine.built.outputs):
            _check_shape(path, spec)
        for profile in engine.built.profiles:
            _check_rows(path, profile)
        for name, value in engine.built.session.items():
            _check_setting(path, name, value)
    for name, rows in manifest.vocabularies.items():
        if not 1 <= rows <= _MAX_DIM:
            raise UgsepError(f"{path}: a table of {rows} rows behind '{name}' is absurd; build the bundle again")
    directories = {(e.built.side, e.directory) for e in manifest.engines}
    for side, directory in manifest.choice.items():
        if (side, directory) not in directories:
            raise UgsepError(f"{path}: the chosen {side} engine '{directory}' is not in the bundle; build it again")


def _check_relative(path: Path, name: str) -> None:
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\\" in name or ":" in name or "\0" in name:
        raise UgsepError(f"{path}: path '{name}' leaves the bundle; do not use this bundle")


def _check_shape(path: Path, spec: TensorSpec) -> None:
    fixed = [dim for dim in spec.shape if isinstance(dim, int)]
    elements = 1
    for dim in fixed:
        elements *= max(dim, 1)
    if len(spec.shape) > _MAX_RANK or any(not 1 <= dim <= _MAX_DIM for dim in fixed) or elements > _MAX_DIM:
        raise UgsepError(f"{path}: tensor '{spec.name}' has absurd shape {list(spec.shape)}; build it again")


def _check_setting(path: Path, name: str, value: Option) -> None:
    """Refuse what no build writes: settings are names, switches and small counts, never a path."""
    if (isinstance(value, str) and ("/" in value or "\\" in value)) or (
        isinstance(value, int) and not 0 <= value <= _MAX_SETTING
    ):
        raise UgsepError(f"{path}: setting '{name}' is {value!r:.60}, which is absurd; do not use this bundle")


def _check_rows(path: Path, profile: Profile) -> None:
    if max(profile.users.max, profile.candidates.max) > _MAX_DIM:
        raise UgsepError(f"{path}: a profile of {profile.candidates.max} candidates is absurd; build it again")

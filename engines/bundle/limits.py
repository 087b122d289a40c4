"""Limits on the values of a manifest: paths inside the bundle, bounded sizes and shapes, harmless settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from engines.backends.built_engine import BuiltEngine, TensorSpec
from engines.backends.engine_spec import Option
from engines.bundle.files import FileEntry
from graphs.base.errors import UgsepError
from graphs.base.json_words import shown

__all__ = ["check_batching", "check_built", "check_files", "check_path", "check_rows"]

_MAX_FILE_BYTES = 1 << 42  # 4 TiB: larger than any model, small enough for int64 arithmetic
_MAX_RANK = 8
_MAX_DIM = 1 << 31
_DTYPES = ("bool", *(f"{kind}int{bits}" for kind in ("", "u") for bits in (8, 16, 32, 64)),
           "float16", "float32", "float64")  # fmt: skip
_MAX_BATCHES = 1024  # sizes at which batching was measured
_MAX_MS = 3_600_000.0
_MAX_SETTING = 4096  # threads, streams, group sizes


def check_files(path: Path, files: Mapping[str, FileEntry]) -> None:
    """Check the entries of the hashed files; ``path`` is the document that lists them, for error messages.

    Raises:
        UgsepError: a path that leaves the bundle, a size out of range, or a hash that is not a sha256.
    """
    for name, entry in files.items():
        check_path(path, name)
        if not 0 <= entry.bytes <= _MAX_FILE_BYTES:
            raise UgsepError(
                f"{path}: '{name}': size {entry.bytes} is out of range (max {_MAX_FILE_BYTES} bytes); "
                "build the bundle again"
            )
        if len(entry.sha256) != 64 or set(entry.sha256) - set("0123456789abcdef"):
            raise UgsepError(f"{path}: '{name}' has no valid sha256; build the bundle again")


def check_built(path: Path, prefix: str, built: BuiltEngine, files: Mapping[str, FileEntry]) -> None:
    """Check one engine: its files, listed in ``files`` under ``prefix``, tensors, profiles and settings.

    Raises:
        UgsepError: a file that is not hashed or is outside the bundle, or a value out of range.
    """
    for name in built.files:
        whole = f"{prefix}{name}"
        check_path(path, whole)
        if whole not in files:
            raise UgsepError(f"{path}: engine file '{whole}' is not among the hashed files; build the bundle again")
    for spec in (*built.inputs, *built.outputs):
        _check_tensor(path, spec)
    for profile in built.profiles:
        check_rows(path, "a profile", max(profile.users.max, profile.candidates.max))
    for name, value in built.session.items():
        _check_setting(path, name, value)


def check_path(path: Path, name: str) -> None:
    """Reject a path that is not relative, or that leaves the bundle on any operating system.

    Raises:
        UgsepError: with the path.
    """
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\\" in name or ":" in name or "\0" in name:
        raise UgsepError(f"{path}: path '{name}' leaves the bundle; do not use this bundle")


def check_rows(path: Path, what: str, rows: int) -> None:
    """Reject a number of rows that no table or profile can have.

    Raises:
        UgsepError: with ``what`` and the number of rows.
    """
    if not 1 <= rows <= _MAX_DIM:
        raise UgsepError(f"{path}: {what} has {rows} rows, out of range (max {_MAX_DIM}); build the bundle again")


def check_batching(path: Path, timings: Sequence[tuple[int, int, float, float]]) -> None:
    """Check the timings of batches: (users, candidates, separate ms, batched ms).

    Raises:
        UgsepError: too many, not sorted by users and candidates, a single user, or a number out of range.
    """
    if len(timings) > _MAX_BATCHES:
        raise UgsepError(
            f"{path}: batching has {len(timings)} sizes, out of range (max {_MAX_BATCHES}); build the bundle again"
        )
    last = (0, 0)
    for users, candidates, *times in timings:
        what = f"batching of {users} users x {candidates} candidates"
        check_rows(path, what, candidates)
        if not 2 <= users <= _MAX_DIM:
            raise UgsepError(f"{path}: {what} is out of range (2 to {_MAX_DIM} users); build the bundle again")
        if (users, candidates) <= last:
            raise UgsepError(f"{path}: {what} is out of order or given twice; build the bundle again")
        last = (users, candidates)
        for ms in times:
            if not 0 < ms <= _MAX_MS:
                raise UgsepError(f"{path}: {what} took {ms!r:.60} ms, out of range; build the bundle again")


def _check_tensor(path: Path, spec: TensorSpec) -> None:
    if spec.dtype not in _DTYPES:
        raise UgsepError(
            f"{path}: tensor '{spec.name}': dtype {shown(spec.dtype)} is none that engines have; build it again"
        )
    fixed = [dim for dim in spec.shape if isinstance(dim, int)]
    elements = 1
    for dim in fixed:
        elements *= max(dim, 1)
    if len(spec.shape) > _MAX_RANK or any(not 1 <= dim <= _MAX_DIM for dim in fixed) or elements > _MAX_DIM:
        raise UgsepError(
            f"{path}: tensor '{spec.name}': shape {list(spec.shape)} is out of range (max {_MAX_RANK} axes, "
            f"{_MAX_DIM} elements); build the bundle again"
        )


def _check_setting(path: Path, name: str, value: Option) -> None:
    """Reject what no build writes: settings are names, switches and small counts, never paths."""
    if isinstance(value, str) and ("/" in value or "\\" in value):
        raise UgsepError(f"{path}: setting '{name}' is {shown(value)}, which is a path; do not use this bundle")
    if isinstance(value, int) and not 0 <= value <= _MAX_SETTING:
        raise UgsepError(
            f"{path}: setting '{name}' is {shown(value)}, out of range (max {_MAX_SETTING}); do not use this bundle"
        )

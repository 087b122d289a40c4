"""Engine cache: engines are keyed by a hash of everything that went into them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from engines.backends.built_engine import BuiltEngine
from engines.backends.engine_spec import BuildSpec
from engines.bundle.document import read_document
from engines.bundle.files import FileEntry, hash_files, verify_files
from engines.bundle.limits import check_built, check_files
from export.io import content_sha256
from graphs.base.config import check_plain, parse
from graphs.base.errors import UgsepError
from graphs.base.scratch import remove_abandoned, scratch_folder

#: Part of every key: increment it when a build's output changes for the same input.
CACHE_VERSION = 1
_ENGINE, _RECORD = "engine", "engine.json"
_FIX = "remove it: ugsep cache gc"
_OTHER_CACHE = "set XDG_CACHE_HOME to another directory, or pass --no-cache"
_BUILDING = ".building-"
_KEY = re.compile(r"[0-9a-z]{64}")  # a folder of another name is somebody else's: --root may be any folder
#: What commands name their folders among the temporary files; none may be the start of another's.
TEMPORARY = (".ugsep-bench-", ".ugsep-gemm-", ".ugsep-schemes-", ".ugsep-reference-")


@dataclass(frozen=True)
class Record:
    """The description of a cache entry: the engine, and the hashes of its files by name."""

    built: BuiltEngine
    files: Mapping[str, FileEntry]


@dataclass(frozen=True)
class Entry:
    """A cache entry: key, engine, bytes on disk, seconds since its last use, and its problem, if any."""

    key: str
    side: str
    backend: str
    precision: str
    bytes: int
    unused_seconds: float
    problem: str = ""


def default_root(environ: Mapping[str, str]) -> Path:
    """Return the cache directory: ``$XDG_CACHE_HOME/ugsep/engines``, else ``~/.cache/ugsep/engines``.

    Raises:
        UgsepError: neither that variable nor HOME is set, and the user has no home directory.
    """
    base = environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "ugsep" / "engines"
    except RuntimeError as error:
        raise UgsepError(f"no home directory for the engine cache; {_OTHER_CACHE}") from error


def engine_key(backend: str, spec: BuildSpec, tools: Mapping[str, str], target: str) -> str:
    """Return the sha256 of everything that determines a build's result.

    That is: the graph and its weights (bytes, not file names), side, precision, profiles in order, every option, tool
    versions, and ``target``, the ISA or GPU the engine is built for. Paths, times, the order of options or tools, and
    the storage of weights do not matter.

    Raises:
        UgsepError: the ONNX file or its external data is missing or damaged.
    """
    described = {
        "cache": CACHE_VERSION,
        "backend": backend,
        "graph": content_sha256(spec.onnx),
        "side": spec.side,
        "precision": spec.precision,
        "half_state": spec.half_state,
        "profiles": [dataclasses.asdict(profile) for profile in spec.profiles],
        "options": {name: [type(value).__name__, value] for name, value in spec.options.items()},
        "tools": dict(tools),
        "target": target,
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def has_entry(root: Path, key: str) -> bool:
    """Return whether the cache has an entry for a key, sound or not."""
    return (root / key).is_dir()


def cached_build(
    root: Path,
    key: str,
    out_dir: Path,
    build: Callable[[Path], BuiltEngine],
    wait: Callable[[str], None] | None = None,
) -> tuple[BuiltEngine, bool]:
    """Copy the engine of ``key`` to ``out_dir``, building it on a miss; return (engine, was cached).

    If two processes need one key, the second waits (``wait`` is called) and reuses the result of the first; other
    keys are built in parallel. A damaged entry is removed and built again.

    Raises:
        UgsepError: ``build`` failed (nothing is cached then), or the cache directory cannot be used.
    """
    _open_root(root)
    with _locked(root, key, wait):
        entry = root / key
        record = _sound(entry)
        if record is not None:
            os.utime(entry)
            _copy(entry, record, out_dir)
            return record.built, True
        shutil.rmtree(entry, ignore_errors=True)
        with scratch_folder(f".{key[:16]}{_BUILDING}", root) as work:
            (work / _ENGINE).mkdir()
            built = build(work / _ENGINE)
            record = _write_record(work, built)
            work.rename(entry)
        _copy(entry, record, out_dir)
        return built, False


def list_entries(root: Path, verify: bool = False) -> list[Entry]:
    """Return the entries of the cache, least recently used first; ``verify`` also checks every hash."""
    entries = []
    for path in sorted(root.glob("*") if root.is_dir() else ()):
        if not _KEY.fullmatch(path.name) or not path.is_dir() or path.is_symlink():
            continue
        try:
            entries.append(_entry(path, verify))
        except FileNotFoundError:  # another process removed it meanwhile
            continue
    return sorted(entries, key=lambda entry: -entry.unused_seconds)


def _entry(path: Path, verify: bool) -> Entry:
    """Return one entry.

    Raises:
        FileNotFoundError: it is removed meanwhile.
    """
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    unused = time.time() - path.stat().st_mtime
    try:
        record = _read_record(path)
        if verify:
            verify_files(path / _ENGINE, record.files)
    except UgsepError as error:
        if not path.is_dir():
            raise FileNotFoundError(path) from error
        return Entry(path.name, "", "", "", size, unused, str(error))
    built = record.built
    return Entry(path.name, built.side, built.backend, built.precision, size, unused)


def collect(root: Path, max_bytes: int) -> list[Entry]:
    """Remove damaged entries, abandoned builds and the least recently used engines beyond ``max_bytes``; return them.

    Entries that another process is building or copying are kept. Folders of killed commands among the system's
    temporary files are removed as well.
    """
    entries = sorted(list_entries(root, verify=True), key=lambda entry: not entry.problem)  # damaged ones first
    total = sum(entry.bytes for entry in entries)
    removed = []
    for entry in entries:
        if not entry.problem and total <= max_bytes:
            continue
        try:
            with _lock(root, entry.key).acquire(timeout=0):
                if entry.problem and _sound(root / entry.key):
                    continue  # another process built it again
                total -= entry.bytes
                with scratch_folder(f".{entry.key[:16]}{_BUILDING}", root) as work:
                    (root / entry.key).rename(work / _ENGINE)  # at once: who reads it finds all of it, or nothing
        except (TimeoutError, FileNotFoundError):  # another process uses it, or removed it
            continue
        removed.append(entry)
    for prefix in {scratch.name.partition(_BUILDING)[0] for scratch in root.glob(f".*{_BUILDING}*")}:
        remove_abandoned(root, f"{prefix}{_BUILDING}")
    for prefix in TEMPORARY:
        remove_abandoned(Path(tempfile.gettempdir()), prefix)
    return removed


def _open_root(root: Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UgsepError(f"{root}: cannot create an engine cache ({error.strerror}); {_OTHER_CACHE}") from error
    if not os.access(root, os.W_OK | os.X_OK):
        raise UgsepError(f"{root}: the engine cache is not writable; {_OTHER_CACHE}")


def _lock(root: Path, key: str) -> FileLock:
    return FileLock(root / f".{key}.lock")


@contextmanager
def _locked(root: Path, key: str, wait: Callable[[str], None] | None) -> Iterator[None]:
    """Hold the lock of a key; ``wait`` is called if another process holds it."""
    lock = _lock(root, key)
    try:
        lock.acquire(timeout=0)  # try to acquire it: a check alone could race with another process
    except TimeoutError:
        if wait is not None:
            wait(f"waiting for another process that is building {key[:12]}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _write_record(entry: Path, built: BuiltEngine) -> Record:
    record = Record(built, hash_files(entry / _ENGINE))
    text = json.dumps(dataclasses.asdict(record), indent=1, sort_keys=True)
    (entry / _RECORD).write_text(text + "\n", encoding="utf-8")
    return record


def _read_record(entry: Path) -> Record:
    """Read and check the record of an entry as strictly as a manifest, because it controls how an engine is loaded.

    Raises:
        UgsepError: the record is missing, malformed, or out of range.
    """
    path = entry / _RECORD
    raw = read_document(entry, _RECORD, f"; {_FIX}", _FIX)
    try:
        check_plain(raw, "engine")
        record = parse(Record, raw, "engine", complete=True)
    except UgsepError as error:
        raise UgsepError(f"{path}: {error}; {_FIX}") from error
    check_files(path, record.files)
    check_built(path, "", record.built, record.files)
    return record


def _sound(entry: Path) -> Record | None:
    """Return the record of an entry if all files match their hashes, else None: the engine is then built again."""
    try:
        record = _read_record(entry)
        verify_files(entry / _ENGINE, record.files)
    except UgsepError:
        return None
    return record


def _copy(entry: Path, record: Record, out_dir: Path) -> None:
    out_dir.mkdir(parents=True, exist_ok=True)
    for name in record.built.files:
        target = out_dir / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        shutil.copyfile(entry / _ENGINE / name, target)

"""Replace a folder atomically, and hash the source files that produced it."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from graphs.base.errors import UgsepError

PACKAGES = ("graphs", "examples")


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """Yield an empty sibling of ``out`` that replaces it on success; a killed run keeps the old folder, if any.

    Raises:
        UgsepError: the folder cannot be written.
    """
    fresh, old = out.with_name(f".{out.name}.new"), out.with_name(f".{out.name}.old")
    try:
        for leftover in (fresh, old):
            shutil.rmtree(leftover, ignore_errors=True)
        fresh.mkdir(parents=True)
        yield fresh
        if out.exists():
            out.rename(old)
        fresh.rename(out)
    except OSError as error:
        raise UgsepError(f"cannot write {out}: {error.strerror or error}; free space or make it writable") from error
    finally:
        for leftover in (fresh, old):
            shutil.rmtree(leftover, ignore_errors=True)


def source_hash(*modules: str) -> str:
    """Return one SHA-256 over the modules' sources and everything they import from this repository."""
    files: dict[str, bytes] = {}
    queue = list(modules)
    while queue:
        name = queue.pop()
        if name in files:
            continue
        file = _source_file(name)
        if file is not None:
            files[name] = file.read_bytes()
            queue += _imports(files[name])
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f"{name} {len(files[name])}\n".encode() + files[name])
    return digest.hexdigest()


def _source_file(module: str) -> Path | None:
    """Return the file of a module, or None if the name is an attribute of a module."""
    spec = importlib.util.find_spec(module.split(".")[0])
    if spec is None or spec.origin is None:
        return None
    stem = Path(spec.origin).parent.parent.joinpath(*module.split("."))
    candidates = (stem.with_name(f"{stem.name}.py"), stem / "__init__.py")
    return next((file for file in candidates if file.is_file()), None)


def _imports(source: bytes) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.update({node.module, *(f"{node.module}.{alias.name}" for alias in node.names)})
    return {name for name in found if name.split(".")[0] in PACKAGES}

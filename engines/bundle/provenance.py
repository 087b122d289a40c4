"""Provenance of a bundle: tool versions, and hashes of the code that determines its content."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from engines.backends.table import backend_names, find_backend

__all__ = ["BUNDLE_CODE", "ENGINE_CODE", "code_sha256", "tool_versions"]

#: The code that turns an ONNX file into an engine; edits elsewhere keep cached engines valid.
ENGINE_CODE = (
    "graphs/base/config.py", "graphs/base/json_text.py", "graphs/base/names.py", "graphs/base/regular_file.py",
    "export/activations.py", "export/graph_limits.py", "export/io.py", "export/names.py", "export/lowering",
    "engines/backends", "engines/measure/interleave.py", "engines/measure/percentiles.py",
)  # fmt: skip
#: The code that determines a bundle's content: everything but the commands, the benchmarks and the serving runtime.
#: Fixtures hold what engines compute; the runtime only routes it, and one that scores otherwise has to fail them.
BUNDLE_CODE = (
    "graphs", "export", "quant", "engines/backends", "engines/build", "engines/bundle", "engines/compile",
    "engines/measure", "engines/recipes", "engines/render", "engines/verify",
)  # fmt: skip
_ROOT = Path(__file__).parents[2]

#: Packages that affect a build whatever its backend.
_TOOLS = ("ugsep", "torch", "onnx", "onnx-ir", "onnxscript", "polygraphy", "numpy")


def tool_versions() -> dict[str, str]:
    """Return the versions of the installed tools that affect a build."""
    found: dict[str, str] = {}
    for name in (*_TOOLS, *(find_backend(backend).RUNTIME.package for backend in backend_names())):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def code_sha256(paths: Sequence[str], root: Path = _ROOT) -> str:
    """Return the sha256 of source files and templates, so that results are invalidated when their code changes.

    Args:
        paths: files and folders below ``root``; a missing one counts as empty.
        root: the folder of the four packages.
    """
    digest = hashlib.sha256()
    for name in paths:
        found = (root / name).rglob("*") if (root / name).is_dir() else [root / name]
        for path in sorted(p for p in found if p.is_file() and p.suffix in (".py", ".html")):
            digest.update(f"{path.relative_to(root).as_posix()}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()

"""Load an engine of a bundle, or report what this machine lacks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from engines.backends.contract import Runner
from engines.backends.table import find_backend
from engines.bundle.manifest import Engine, Manifest
from graphs.base.errors import UgsepError, first_line

__all__ = ["compare_versions", "load_engine"]


def load_engine(
    directory: Path,
    manifest: Manifest,
    engine: Engine,
    threads: int | None = None,
    runtime_cache: Path | None = None,
) -> Runner:
    """Load one engine of a verified bundle; ``runtime_cache`` is a folder for kernels compiled while serving.

    Raises:
        UgsepError: the backend is unknown or cannot run on this machine; the message has what the engine needs, what
            this machine has, and the command that rebuilds it.
    """
    built = engine.built
    backend = find_backend(built.backend)
    here = backend.probe()
    if not here.can_run:
        needs = ", ".join(f"{k} {v}" for k, v in sorted(built.requires.items())) or built.backend
        raise UgsepError(
            f"{built.side} engine needs {needs}, this machine: {here.reason}; rebuild: {manifest.rebuild}"
        )
    try:
        kernels = runtime_cache / _runtime_cache_name(manifest, engine) if runtime_cache is not None else None
        return backend.load(directory / engine.directory, built, threads, kernels)
    except UgsepError as error:
        raise UgsepError(f"{error}{_other_versions(manifest)}; rebuild: {manifest.rebuild}") from error
    except (TypeError, ValueError) as error:  # a setting of the wrong type
        refused = f"{built.backend} rejects its settings ({first_line(error)})"
        raise UgsepError(
            f"{directory / engine.directory}: {refused}{_other_versions(manifest)}; rebuild: {manifest.rebuild}"
        ) from error


def _other_versions(manifest: Manifest) -> str:
    """Return the tools whose versions differ from those of the build, for the end of an error, or an empty string."""
    from engines.bundle.provenance import tool_versions

    differ = compare_versions(manifest.tools, tool_versions())
    return f" ({', '.join(differ)})" if differ else ""


def _runtime_cache_name(manifest: Manifest, engine: Engine) -> str:
    """Return a file name derived from the engine's contents, so that a moved bundle finds its kernels."""
    hashes = "".join(manifest.files[f"{engine.directory}/{name}"].sha256 for name in engine.built.files)
    return f"{hashlib.sha256(hashes.encode()).hexdigest()[:32]}.kernels"


def compare_versions(built_with: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    """Return one line per tool whose version differs: ``onnxruntime 1.30.0 (bundle) != 1.31.1 (here)``."""
    return [
        f"{tool} {version} (bundle) != {here[tool]} (here)"
        for tool, version in sorted(built_with.items())
        if tool in here and here[tool] != version
    ]

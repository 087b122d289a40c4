"""A bundle on disk, opened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from engines.bundle.files import verify_files
from engines.bundle.manifest import Manifest, read_manifest
from graphs.base.errors import UgsepError


def read_report(bundle: Path) -> dict[str, Any]:
    """Return a bundle's ``report.json``.

    Raises:
        UgsepError: it is missing or not JSON.
    """
    path = bundle / "report.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UgsepError(f"{path}: no readable report ({error}); build the bundle again") from error
    if not isinstance(document, dict):
        raise UgsepError(f"{path}: not a JSON object; build the bundle again")
    return document


def open_bundle(directory: Path) -> Manifest:
    """Read the manifest of a bundle and check every file against it; nothing is loaded.

    Raises:
        UgsepError: see ``read_manifest`` and ``verify_files``.
    """
    manifest = read_manifest(directory)
    verify_files(directory, manifest.files, manifest.rebuild)
    return manifest

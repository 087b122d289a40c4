"""Manifests edited by hand in tests, with a digest that fits again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engines.bundle.digest import UNSEALED, seal
from engines.bundle.files import MANIFEST


def reseal(bundle: Path) -> None:
    """Give a manifest that was edited the digest of what it says now; hashes of files stay as they are."""
    path = bundle / MANIFEST
    path.write_text(seal(path.read_text(encoding="utf-8")), encoding="utf-8")


def write_raw(bundle: Path, raw: dict[str, Any]) -> None:
    """Write a JSON document as a bundle's manifest, with the digest of what it says."""
    document = {**raw, "digest": UNSEALED}
    (bundle / MANIFEST).write_text(json.dumps(document), encoding="utf-8")
    reseal(bundle)


def edit_raw(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a manifest's JSON document in place."""
    raw = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))
    change(raw)
    write_raw(bundle, raw)

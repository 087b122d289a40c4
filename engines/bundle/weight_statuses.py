"""The status of every weight in every engine of a bundle, from its manifest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engines.bundle.files import MANIFEST
from engines.bundle.manifest import read_manifest
from graphs.base.regular_file import is_regular_file

__all__ = ["WeightStatusRow", "engine_statuses"]


@dataclass(frozen=True)
class WeightStatusRow:
    """The status of one weight in one engine: fused-int8, dequantized-each-run, folded-to-float, ...

    ``precision`` is that requested of the engine, ``detail`` the node, kernel or layer of the optimized graph.
    """

    engine: str
    side: str
    precision: str
    weight: str
    status: str
    detail: str


def engine_statuses(bundle: Path) -> tuple[WeightStatusRow, ...]:
    """Return the statuses of all engines; () if the folder is not a bundle.

    Raises:
        UgsepError: the manifest cannot be read.
    """
    if not is_regular_file(bundle / MANIFEST, "build the bundle again"):
        return ()
    return tuple(
        WeightStatusRow(e.directory, e.built.side, e.built.precision, w.name, w.status, w.detail)
        for e in read_manifest(bundle).engines
        for w in e.built.weights
    )

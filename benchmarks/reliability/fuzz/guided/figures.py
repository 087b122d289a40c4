"""What the fuzzer did with each target so far, and the figures of all as a campaign's."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.reliability.fuzz.guided.order import DEFECTS
from benchmarks.reliability.fuzz.guided.table import TARGETS
from benchmarks.reliability.summary import Summary
from graphs.base.errors import UgsepError

__all__ = ["NAME", "Figures", "guided_summary", "kept_defects", "read_figures", "write_figures"]

NAME = "coverage"
_GOAL = (
    "Parsers return or refuse any bytes in one printable line; libFuzzer looks for inputs that reach new code of "
    "theirs, in manifests with the digest made again, recipes, requests, graphs, checkpoints and calls."
)
_FILE = "figures.json"


@dataclass(frozen=True)
class Figures:
    """What was done with one target.

    ``inputs`` ran, of which ``ok`` were accepted and ``refused`` refused; ``defects`` are the kinds of others that
    still occur. ``edges`` and ``features`` are what libFuzzer counts of the watched code, ``corpus`` the inputs that
    it kept for them.
    """

    seed: int = 0
    processes: int = 0
    inputs: int = 0
    ok: int = 0
    refused: int = 0
    defects: int = 0
    edges: int = 0
    features: int = 0
    corpus: int = 0


def read_figures(folder: Path) -> Figures:
    """Return the figures of a target's folder, zeros if it has none.

    Raises:
        UgsepError: a damaged file.
    """
    path = folder / _FILE
    if not path.exists():
        return Figures()
    try:
        return Figures(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UgsepError(f"{path}: not figures of a target ({error!r}); discard them with --fresh") from error


def write_figures(folder: Path, found: Figures) -> None:
    """Replace the figures of a target's folder."""
    (folder / _FILE).write_text(json.dumps(asdict(found), indent=1) + "\n", encoding="utf-8")


def kept_defects(folder: Path) -> list[tuple[Path, str, str]]:
    """Return the input, the kind and the detail of every defect that a target's folder holds."""
    found = []
    for path in sorted((folder / DEFECTS).glob("*.json")):
        said = json.loads(path.read_text(encoding="utf-8"))
        found.append((path.with_suffix(".input"), said["kind"], said["detail"]))
    return found


def guided_summary(work: Path) -> Summary | None:
    """Return the figures of all targets that ran, as those of a campaign; None if none did."""
    folders = {target.name: work / NAME / target.name for target in TARGETS}
    found = {name: figures for name, folder in folders.items() if (figures := read_figures(folder)).processes}
    if not found:
        return None
    defects = [
        {"index": path.stem, "target": name, "kind": kind, "detail": detail}
        for name in found
        for path, kind, detail in kept_defects(folders[name])
    ]
    return Summary(
        name=NAME,
        goal=_GOAL,
        seed=next(iter(found.values())).seed,
        tries=sum(one.inputs for one in found.values()),
        history=_HISTORY,
        targets={name: _counts(one) for name, one in found.items()},
        figures={name: _reached(one) for name, one in found.items()},
        defects=defects,
    )


_HISTORY = (
    "A try is an input. Edges and features are libFuzzer's counts of the code of the parser that its corpus reaches "
    "(Python bytecode; the libraries beneath are not instrumented). The corpus is kept, and the next run starts from "
    "it. Inputs that ended in a defect which was mended since count as inputs only."
)


def _counts(one: Figures) -> dict[str, int]:
    counts = {"ok": one.ok, "refused": one.refused, "defect": one.defects}
    return {result: count for result, count in counts.items() if count}


def _reached(one: Figures) -> dict[str, float]:
    return {"inputs": one.inputs, "edges": one.edges, "features": one.features, "corpus": one.corpus}

"""What a fuzzing process is told, and the names of what it leaves in the folder of its target."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["COUNTS", "DEFECTS", "RESULTS", "ROOT", "Order"]

ROOT = Path(__file__).parents[4]  # of the repository
#: A file of three 64-bit counts, in the order of ``RESULTS``; a folder of inputs, each with a JSON file beside it.
COUNTS, DEFECTS = "counts", "defects"
RESULTS = ("ok", "refused", "defect")


@dataclass(frozen=True)
class Order:
    """One process.

    Args:
        module: has the factory of the parser.
        factory: from an empty folder to a ``Parser``.
        watched: what is instrumented, relative to the repository.
        folder: of the target: its corpus, counts and defects.
        flags: of libFuzzer.
        replay: a file whose content is given to the parser once, without a fuzzer; None to fuzz.
        seconds: of processor time that a replayed input may take.
    """

    module: str
    factory: str
    watched: tuple[str, ...]
    folder: str
    flags: tuple[str, ...] = ()
    replay: str | None = None
    seconds: int = 0

    def text(self) -> str:
        """Return the order as JSON."""
        return json.dumps(asdict(self))

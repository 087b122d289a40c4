"""The tries made so far: a line of JSON each, so that a run that was stopped goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from benchmarks.reliability.contract import Outcome
from graphs.base.errors import UgsepError
from graphs.base.finite import finite


@dataclass(frozen=True)
class Try:
    """One line of a journal: which try, and how it ended after how many seconds."""

    index: int
    outcome: Outcome
    seconds: float


def journal_path(work: Path, name: str) -> Path:
    """Return the journal of a campaign."""
    return work / name / "journal.jsonl"


def read_journal(path: Path, seed: int | None = None) -> tuple[int, dict[int, Try]]:
    """Return the seed of a journal and its tries by index; a last line that was cut short is left out.

    Args:
        path: it need not exist.
        seed: what the journal has to be of; any if None.

    Raises:
        UgsepError: a journal of another seed, or a line in it that is not a try.
    """
    if not path.exists():
        return seed or 0, {}
    try:
        *whole, _ = path.read_text(encoding="utf-8").split("\n")
        if not whole:
            return seed or 0, {}
        found = int(json.loads(whole[0])["seed"])
        tries = [_parsed(json.loads(line)) for line in whole[1:]]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UgsepError(f"{path}: not a journal of a campaign ({error!r}); discard it with --fresh") from error
    if seed is not None and found != seed:
        raise UgsepError(f"{path}: tries of seed {found}, not {seed}; pass --seed {found} or --fresh")
    return found, {one.index: one for one in tries}


@contextmanager
def open_journal(path: Path, seed: int) -> Iterator[IO[str]]:
    """Open a journal to append to it, without the rest of a line that was cut short."""
    path.parent.mkdir(parents=True, exist_ok=True)
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    kept = old[: old.rfind("\n") + 1] or json.dumps({"seed": seed}) + "\n"
    if kept != old:
        path.write_text(kept, encoding="utf-8")
    with path.open("a", encoding="utf-8") as journal:
        yield journal
        os.fsync(journal.fileno())


def append(journal: IO[str], one: Try) -> None:
    """Write a try, whole or not at all as far as a reader can tell."""
    line = {"index": one.index, "seconds": round(one.seconds, 4), **asdict(one.outcome)}
    journal.write(json.dumps(finite(line), allow_nan=False) + "\n")
    journal.flush()


def _parsed(line: dict[str, Any]) -> Try:
    index, seconds = int(line.pop("index")), float(line.pop("seconds"))
    return Try(index, Outcome(**line), seconds)

"""Run a campaign: seeded tries, each in the journal as soon as it is made."""

from __future__ import annotations

import itertools
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from benchmarks.reliability.contract import Campaign, Outcome
from benchmarks.reliability.journal import Try, append, journal_path, open_journal, read_journal
from graphs.base.errors import UgsepError, printable_line
from graphs.base.progress import Progress, ProgressCallback, silent


@dataclass(frozen=True)
class Limits:
    """Where a run stops: after so many tries, those of earlier runs included, or so many minutes of this run.

    Raises:
        UgsepError: minutes that are not above 0.
    """

    tries: int
    minutes: float | None = None

    def __post_init__(self) -> None:
        if self.minutes is not None and not self.minutes > 0:  # NaN, which click takes for a number in any range
            raise UgsepError(f"--minutes is {self.minutes}; give a number above 0")


def run(
    campaign: Campaign[Any],
    work: Path,
    seed: int,
    limits: Limits,
    fresh: bool = False,
    progress: ProgressCallback = silent,
) -> list[Try]:
    """Make the tries that the journal lacks, and return all of them by index.

    A defect does not stop the run; ``KeyboardInterrupt`` does, and keeps what is in the journal.

    Args:
        campaign: what to try.
        work: the folder with a folder per campaign.
        seed: of the run; with the campaign's name and the index it decides a try.
        limits: where to stop.
        fresh: discard the journal of earlier runs.
        progress: called after each try.

    Raises:
        UgsepError: the journal is of another seed, or damaged, or another run works in the same folder.
    """
    with locked(campaign.name, work):
        path = journal_path(work, campaign.name)
        if fresh:
            path.unlink(missing_ok=True)
        tries = read_journal(path, seed)[1]
        missing = [index for index in range(limits.tries) if index not in tries]
        if missing:
            began = time.monotonic()
            until = float("inf") if limits.minutes is None else began + 60 * limits.minutes
            with _workspace(campaign, work) as workspace, open_journal(path, seed) as journal:
                for index in itertools.takewhile(lambda _: time.monotonic() < until, missing):
                    tries[index] = _attempted(campaign, workspace, seed, index)
                    append(journal, tries[index])
                    defects = sum(one.outcome.result == "defect" for one in tries.values())
                    progress(Progress(campaign.name, len(tries), limits.tries, f"{defects} defects"))
        return [tries[index] for index in sorted(tries)]


def repeat(campaign: Campaign[Any], work: Path, seed: int, index: int) -> Try:
    """Make one try alone, without the journal.

    Raises:
        UgsepError: another run works in the same folder.
    """
    with locked(campaign.name, work), _workspace(campaign, work) as workspace:
        return _attempted(campaign, workspace, seed, index)


def generator_of(campaign: str, seed: int, index: int) -> random.Random:
    """Return the random generator of one try."""
    return random.Random(f"{seed} {campaign} {index}")  # a string is hashed the same way in every process


@contextmanager
def _workspace(campaign: Campaign[Any], work: Path) -> Iterator[Any]:
    folder = (work / campaign.name / "work").absolute()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    workspace = campaign.prepare(folder)
    try:
        yield workspace
    finally:
        campaign.close(workspace)


@contextmanager
def locked(name: str, work: Path) -> Iterator[None]:
    """Keep other runs away from a campaign's journal and inputs: two runs would damage each other's.

    Raises:
        UgsepError: another run works in the same folder.
    """
    folder = work / name
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise UgsepError(
            f"{folder}: another run of {name} works there; wait for it, or give another --work"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _attempted(campaign: Campaign[Any], workspace: Any, seed: int, index: int) -> Try:
    began = time.monotonic()
    outcome = _caught(lambda: campaign.attempt(workspace, index, generator_of(campaign.name, seed, index)))
    return Try(index, outcome, time.monotonic() - began)


def _caught(attempt: Callable[[], Outcome]) -> Outcome:
    try:
        return attempt()
    except Exception as error:
        return Outcome("an exception escaped", "defect", type(error).__name__, printable_line(str(error)))

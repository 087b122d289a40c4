"""Where a campaign runs, how long, and what it leaves behind."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from engines.bench.machine import this_machine
from engines.verify.checks import Check
from graphs.base.errors import UgsepError

#: For campaigns that ask whether requests are lost: a queue so long that none is refused when a core is busy.
PATIENT = ("--queue", "4096")


@dataclass(frozen=True)
class Bench:
    """A bundle, a work folder, and the cores: the server on the first, the load generator on the last.

    ``short`` runs the form for CI: seconds instead of minutes, on no particular core, and its times mean nothing.
    """

    bundle: Path
    work: Path
    short: bool = False
    rivals: Path = Path("build/rivals")
    seed: int = 0
    server_cores: frozenset[int] = frozenset()
    generator_cores: frozenset[int] = frozenset()

    def pin_generator(self) -> None:
        """Keep this process off the server's core."""
        if self.generator_cores:
            os.sched_setaffinity(0, self.generator_cores)

    def long(self, seconds: float, short: float) -> float:
        """Return the length of a phase in seconds."""
        return short if self.short else seconds


def two_cores() -> tuple[frozenset[int], frozenset[int]]:
    """Return the core for the server and the one for the load generator; none if there is one core only."""
    cores = sorted(os.sched_getaffinity(0))
    return (frozenset(cores[:1]), frozenset(cores[-1:])) if len(cores) > 1 else (frozenset(), frozenset())


@dataclass(frozen=True)
class Result:
    """What a campaign found: bounds that are kept or not, and figures."""

    name: str
    short: bool
    checks: tuple[Check, ...]
    figures: Mapping[str, Any]
    machine: Mapping[str, Any] = field(default_factory=dict)
    at: float = field(default_factory=time.time)

    @property
    def passed(self) -> bool:
        """Whether every bound is kept."""
        return all(check.passed for check in self.checks)


def result(bench: Bench, name: str, checks: Sequence[Check], figures: Mapping[str, Any]) -> Result:
    """Return a result that names the machine it was found on."""
    return Result(name, bench.short, tuple(checks), figures, asdict(this_machine()))


def save(bench: Bench, found: Result) -> Path:
    """Write a result to its own file, which replaces an older one of the same campaign."""
    file = results_folder(bench.work) / f"{found.name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {**asdict(found), "checks": [{**asdict(c), "passed": c.passed} for c in found.checks]}
    file.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    return file


def results_folder(work: Path) -> Path:
    """Return the folder with a file per campaign."""
    return work / "results"


def load_results(work: Path) -> dict[str, Result]:
    """Return the saved results by name.

    Raises:
        UgsepError: a file that is not a result.
    """
    found = {}
    for file in sorted(results_folder(work).glob("*.json")):
        try:
            raw = json.loads(file.read_text())
            checks = tuple(Check(c["name"], float(c["value"]), c["bound"], c["relation"]) for c in raw.pop("checks"))
            found[file.stem] = Result(checks=checks, **raw)
        except (ValueError, TypeError, KeyError) as error:
            raise UgsepError(f"{file}: not a result ({error!r}); run the campaign again") from error
    return found

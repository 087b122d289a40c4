"""Commands killed at random file operations and moments."""

from __future__ import annotations

import contextlib
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.reliability.children.client import Children, started
from benchmarks.reliability.contract import Campaign, Outcome
from benchmarks.reliability.kill.swap import Swap, killed_swap, measured_swap
from benchmarks.reliability.kill.target import SECONDS, Reference, Target, killed, order_of, reference
from benchmarks.reliability.kill.targets import targets
from benchmarks.reliability.kill.trees import difference, tree
from benchmarks.reliability.small_files import small_bundle, small_checkpoint
from graphs.base.errors import printable_line

_MOST_KILLS = 4  # in one try, before the run that must succeed
#: How often each target has its turn: those that trace a model take seconds, the others tenths of a second.
_TURNS = {
    "publishing over a bundle": 6,
    "two builders in one folder, publishing": 6,
    "engine cache": 5,
    "quant calibrate": 5,
    "quant weights": 5,
    "hot swap of ugsep serve": 3,
    "ugsep stream": 1,
    "ugsep build over a bundle": 1,
}


@dataclass
class Kills:
    """The workspace: a fork server, two bundles, and the references made so far."""

    folder: Path
    children: Children
    resources: contextlib.ExitStack
    old: Path
    new: Path
    table: dict[str, Target]
    references: dict[str, Reference] = field(default_factory=dict)
    swap: Swap | None = None

    def reference(self, target: Target) -> Reference:
        """Return what an unkilled run of a target leaves; it is run when first asked for."""
        if target.name not in self.references:
            folder = self.folder / "references" / str(len(self.references))
            self.references[target.name] = reference(target, self.children, folder)
        return self.references[target.name]


def prepare(folder: Path) -> Kills:
    """Start the fork server and build two bundles.

    Raises:
        UgsepError: a build fails.
    """
    resources = contextlib.ExitStack()
    with resources:
        children = resources.enter_context(started())
        old, new = (small_bundle(children, folder, seed) for seed in (0, 1))
        table = targets(old, new, *small_checkpoint(children, folder))
        kept = resources.pop_all()
    return Kills(folder, children, kept, old, new, {target.name: target for target in table})


def close(kills: Kills) -> None:
    """End the fork server and all it runs."""
    kills.resources.close()


def attempt(kills: Kills, index: int, rng: random.Random) -> Outcome:
    """Kill a command one to four times in a row, then let it end."""
    turns = [name for name, count in _TURNS.items() for _ in range(count)]
    random.Random(0).shuffle(turns)
    name = turns[index % len(turns)]
    folder = kills.folder / "try"
    for stale in (folder, folder.with_name("try.out")):
        shutil.rmtree(stale, ignore_errors=True)
    if name not in kills.table:
        if kills.swap is None:
            kills.swap = measured_swap(kills.children, kills.old, kills.new, folder)
        return killed_swap(kills.children, kills.swap, folder, name, rng)
    target = kills.table[name]
    found = kills.reference(target)
    shutil.copytree(found.start, folder, symlinks=True)
    count, how = 0, []
    for _ in range(rng.randint(1, _MOST_KILLS)):
        ended, moment = killed(target, kills.children, found, folder, rng)
        count += sum(one.status == -9 for one in ended)
        how.append(moment)
        for one in ended:
            refused = one.status == 2 and any(part in one.stderr for part in target.refusals)
            if one.late or not (one.status in (0, -9) or refused):
                return _defect(name, "a run beside the killed one failed", f"{one.status}: {one.last_line}", count)
        if problem := target.problem(folder, found.before, found.after):
            return _defect(name, "damaged", problem, count)
    for number, argv in enumerate(target.commands(folder)):
        done = kills.children.run(order_of(target, folder, number, argv), SECONDS)
        if done.status:
            return _defect(name, "the next run failed", f"{done.status}: {done.last_line}", count)
    if problem := difference(tree(folder), found.after, target.volatile):
        return _defect(name, "not as without a kill", problem, count)
    return Outcome(name, "ok", how[-1], measures={"kills": count})


def _defect(name: str, kind: str, detail: str, kills: int) -> Outcome:
    return Outcome(name, "defect", kind, printable_line(detail), {"kills": kills})


CAMPAIGN = Campaign(
    name="kill",
    goal="after SIGKILL at any file operation or moment the old or the new result is there, whole; the next run of "
    "the command ends as if nothing had been, and leaves nothing over",
    prepare=prepare,
    attempt=attempt,
    close=close,
    short_tries=22,
    long_tries=480,
    history="These are not the tries of one version. The first runs found leftovers of `quant weights`, of builds "
    "among temporary files and in the engine cache, of `ugsep stream` beside a finished result, and a "
    "calibration that no later run could resume. Each was mended and the tries that had ended in these defects "
    "were made again with the mended code; the others were kept. Nearly all kills hit steps of a build run "
    "alone (publishing, the cache), `quant` and the server: whole builds and streams take seconds and had 15 "
    "tries each. A kill of the server may come after the switch.",
)

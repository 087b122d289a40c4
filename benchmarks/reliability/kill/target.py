"""A command that is killed: what is there before it, what must hold after a kill, and what a whole run leaves."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.reliability.children.client import Children, Ended
from benchmarks.reliability.children.order import Order, Trap
from benchmarks.reliability.children.traps import counted
from benchmarks.reliability.kill.trees import tree
from graphs.base.errors import UgsepError

Argv = tuple[str, ...]
Tree = Mapping[str, str]
SECONDS = 300.0  # a command that takes longer hangs


@dataclass(frozen=True)
class Target:
    """A command under test.

    Args:
        name: in the report.
        start: makes what is there before, in an empty folder.
        commands: by folder; several are started together, and one after the other by the run that is not killed.
        problem: what is wrong with a folder after a kill, or ""; given what was there before and after a whole run.
        volatile: names of files that hold times, whose content differs by run.
        refusals: parts of the lines by which one of several commands may end with status 2.
        environ: variables of each command.
    """

    name: str
    start: Callable[[Path], None]
    commands: Callable[[Path], list[Argv]]
    problem: Callable[[Path, Tree, Tree], str]
    volatile: Collection[str] = ()
    refusals: tuple[str, ...] = ()
    environ: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Reference:
    """What a run that is not killed starts from and leaves, and the operations and seconds of each command."""

    start: Path
    before: Tree
    after: Tree
    operations: tuple[int, ...]
    seconds: tuple[float, ...]


def order_of(target: Target, folder: Path, number: int, argv: Argv, operation: int = 0) -> Order:
    """Return the order of one command in a try's folder; its output lies beside that, its temporary files inside."""
    beside = folder.with_name(f"{folder.name}.out")
    beside.mkdir(exist_ok=True)
    (folder / "tmp").mkdir(exist_ok=True)
    trap = Trap(folder, beside / f"{number}.count", operation)
    environ = {"TMPDIR": str(folder / "tmp"), "XDG_CACHE_HOME": str(folder / "cache"), **(target.environ or {})}
    return Order(argv, folder, beside / f"{number}", environ, trap=trap)


def reference(target: Target, children: Children, folder: Path) -> Reference:
    """Run the commands of a target unkilled.

    Raises:
        UgsepError: one fails.
    """
    start, done = folder / "start", folder / "done"
    for one in (start, done):
        shutil.rmtree(one, ignore_errors=True)
    start.mkdir(parents=True)
    (start / "tmp").mkdir()
    target.start(start)
    shutil.copytree(start, done, symlinks=True)
    operations, seconds = [], []
    for number, argv in enumerate(target.commands(done)):
        order = order_of(target, done, number, argv)
        ended = children.run(order, SECONDS)
        if ended.status:
            raise UgsepError(f"{target.name}: {' '.join(argv)} ends with {ended.status}: {ended.last_line}")
        assert order.trap is not None
        operations.append(counted(order.trap.counter))
        seconds.append(ended.seconds)
    return Reference(start, tree(start), tree(done), tuple(operations), tuple(seconds))


def killed(
    target: Target, children: Children, found: Reference, folder: Path, rng: random.Random
) -> tuple[list[Ended], str]:
    """Run the commands, kill some at a random file operation or moment, and return how they ended.

    Where several run together, each is killed with a chance of its own, one at least.
    """
    commands = target.commands(folder)
    victims = {n for n in range(len(commands)) if rng.random() < 0.6} or {rng.randrange(len(commands))}
    by_operation = rng.random() < 0.75
    moments = [rng.randint(1, max(1, count)) for count in found.operations]
    delays = [rng.random() * 1.1 * most for most in found.seconds]
    pids = []
    for number, argv in enumerate(commands):
        operation = moments[number] if by_operation and number in victims else 0
        pids.append(children.start(order_of(target, folder, number, argv, operation)))
    if not by_operation:
        for number in victims:
            children.kill_later(pids[number], delays[number])
    ended = [children.wait(pid, SECONDS) for pid in pids]
    return ended, "at a file operation" if by_operation else "at a moment"

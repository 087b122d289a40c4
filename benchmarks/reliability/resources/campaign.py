"""Commands short of what they need."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from pathlib import Path

from benchmarks.reliability.children.client import started
from benchmarks.reliability.contract import Campaign, Outcome
from benchmarks.reliability.resources.bench import Bench
from benchmarks.reliability.resources.cases import cases
from benchmarks.reliability.resources.limits import ctrl_c, descriptors, file_size, full_disk, memory, network
from benchmarks.reliability.resources.places import (
    no_folder,
    no_home,
    odd_names,
    own_folder,
    private_umask,
    read_only,
)
from benchmarks.reliability.resources.terminals import ascii_only, closed_pipe, early_ctrl_c, narrow
from benchmarks.reliability.small_files import small_bundle, small_checkpoint

SCARCITIES: tuple[Callable[[Bench, random.Random], Outcome], ...] = (
    file_size,
    ctrl_c,
    memory,
    odd_names,
    descriptors,
    full_disk,
    read_only,
    ctrl_c,
    own_folder,
    private_umask,
    no_home,
    no_folder,
    closed_pipe,
    network,
    narrow,
    ascii_only,
    early_ctrl_c,
)


def prepare(folder: Path) -> Bench:
    """Start the fork server, and make a bundle and a checkpoint.

    Raises:
        UgsepError: a command fails that has all it needs.
    """
    with contextlib.ExitStack() as resources:
        children = resources.enter_context(started())
        bundle = small_bundle(children, folder, 0)
        recipe, _, checkpoint = small_checkpoint(children, folder)
        return Bench(folder, children, resources.pop_all(), bundle, cases(recipe, checkpoint, folder / "small.yaml"))


def attempt(bench: Bench, index: int, rng: random.Random) -> Outcome:
    """Take something away from a command."""
    return SCARCITIES[index % len(SCARCITIES)](bench, rng)


def close(bench: Bench) -> None:
    """End the fork server and all it runs."""
    bench.resources.close()


CAMPAIGN = Campaign(
    name="resources",
    goal="a command that lacks something ends with one line that says so, keeps what was there, leaves nothing over, "
    "and succeeds when it is run again with what it lacked",
    prepare=prepare,
    attempt=attempt,
    close=close,
    short_tries=len(SCARCITIES),
    long_tries=40 * len(SCARCITIES),
    history="408 of 680 tries, not of one version. First runs found tracebacks with a closed or full stdout, "
    "without a home directory, and with too little memory; the tries that had ended in a defect were "
    "made again with the mended code, or with the mended campaign where that was wrong, and the others "
    "were kept. Most limits on memory and file sizes were wide enough for the command.",
)

"""No disk, no memory, no descriptors, no network, no time."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.reliability.children.order import Trap
from benchmarks.reliability.contract import Outcome
from benchmarks.reliability.resources.bench import SECONDS, Bench, files, judged, tried
from benchmarks.reliability.resources.cases import CHEAP, COSTLY, WRITERS


def pick(rng: random.Random, cheap: tuple[str, ...], costly: tuple[str, ...] = COSTLY) -> str:
    """Choose a case: one in ten of those that take seconds."""
    return rng.choice(costly) if costly and rng.random() < 0.1 else rng.choice(cheap)


def file_size(bench: Bench, rng: random.Random) -> Outcome:
    """Let no file grow beyond a few kilobytes, as a quota does."""
    case = bench.cases[pick(rng, WRITERS)]
    limit = int(10 ** rng.uniform(3.5, 5.2))  # what the command says goes to files too
    return tried(bench, case, "RLIMIT_FSIZE", case.name, limits={"FSIZE": limit})


def memory(bench: Bench, rng: random.Random) -> Outcome:
    """Let the process map little more than it has."""
    case = bench.cases[pick(rng, CHEAP)]
    pages = int(Path(f"/proc/{bench.children.server.pid}/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + int(10 ** rng.uniform(5, 8.3))
    return tried(bench, case, "RLIMIT_AS", case.name, limits={"AS": limit})


def descriptors(bench: Bench, rng: random.Random) -> Outcome:
    """Let the process open few files."""
    case = bench.cases[pick(rng, CHEAP)]
    return tried(bench, case, "RLIMIT_NOFILE", case.name, limits={"NOFILE": rng.randint(4, 40)})


def full_disk(bench: Bench, rng: random.Random) -> Outcome:
    """Run on a file system with a few kilobytes left."""
    case = bench.cases[pick(rng, WRITERS)]
    folder = bench.folder / "disk"
    with small_disk(folder) as reason:
        if reason:
            return Outcome("a full disk", "ok", f"skipped: {reason}")
        bench.lay_out(folder / "try")
        before = files(folder / "try")
        room = shutil.disk_usage(folder).free - int(10 ** rng.uniform(0, 5.2))
        (folder / "filler").write_bytes(b"\0" * max(room, 0))
        ended = bench.children.run(bench.order(case, folder / "try"), SECONDS)
        (folder / "filler").unlink()
        return judged(bench, case, folder / "try", before, ended, "a full disk", case.name)


@contextmanager
def small_disk(folder: Path, megabytes: int = 24) -> Iterator[str]:
    """Mount a file system in memory on a folder; yield why that cannot be, or ""."""
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
        reason = "" if done.returncode == 0 else "a mount needs more rights"
    except FileNotFoundError:
        reason = "no mount command"
    try:
        yield reason
    finally:
        if not reason:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def network(bench: Bench, rng: random.Random) -> Outcome:
    """Refuse every connection beyond this machine: nothing may want one."""
    case = bench.cases[pick(rng, CHEAP)]
    found = tried(bench, case, "no network", case.name, refuse_network=True)
    if found.result == "refused":
        return Outcome(found.target, "defect", f"{case.name}: needs the network", found.detail)
    return found


def ctrl_c(bench: Bench, rng: random.Random) -> Outcome:
    """Send SIGINT at a random file operation or moment: status 130, a line, and nothing left."""
    case = bench.cases[pick(rng, CHEAP)]
    bench.whole(case)
    folder = bench.lay_out(bench.folder / "try")
    before = files(folder)
    operation = rng.randint(1, 60) if rng.random() < 0.6 else 0
    trap = Trap(folder, bench.folder / "count", operation, signal.SIGINT)
    pid = bench.children.start(bench.order(case, folder, trap=trap))
    if not operation:
        bench.children.kill_later(pid, rng.random() * (6.0 if case.name in COSTLY else 0.4), signal.SIGINT)
    ended = bench.children.wait(pid, SECONDS)
    return judged(bench, case, folder, before, ended, "Ctrl-C", case.name, statuses=(0, 130))

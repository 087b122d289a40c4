"""No rights, no home, no working directory, and names that few expect."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from pathlib import Path

from benchmarks.reliability.contract import Outcome
from benchmarks.reliability.resources.bench import SECONDS, Bench, files, judged, tried, verdict
from benchmarks.reliability.resources.cases import CHEAP, COSTLY, WRITERS
from benchmarks.reliability.resources.limits import pick

_STRANGER = 64123  # a user id without an entry in /etc/passwd
_NAMES = (
    "two words", "it's", 'a "quote"', "line\nbreak", "tab\there", "naïve-ünïcode", "日本語", "🦊", "-rf", "--help",
    "a%sb", "$HOME", "a;b", "[/b]", "a\\b", "*", "{x}", "x:y", "a,b", "\x1b[1m", "\u202eabc", "n" * 200, ".hidden",
)  # fmt: skip


def read_only(bench: Bench, rng: random.Random) -> Outcome:
    """Run as a user who may read everything and write nothing."""
    if os.geteuid() != 0:
        return Outcome("another user, nothing writable", "ok", "skipped: needs root")
    case = bench.cases[pick(rng, CHEAP)]
    with tempfile.TemporaryDirectory(prefix="ugsep-reliability-") as place:
        Path(place).chmod(0o755)
        folder = bench.lay_out(Path(place) / "try")
        (folder / "tmp").chmod(0o755)
        output = Path(place) / "output"
        before = files(folder)
        ended = bench.children.run(bench.order(case, folder, uid=_STRANGER, output=output), SECONDS)
        found = verdict("another user, nothing writable", case.name, ended)
        if found.result == "ok" and case.writes:
            return Outcome(found.target, "defect", f"{case.name}: wrote", "as a user who may not")
        if found.result == "refused" and not case.writes:
            return Outcome(found.target, "defect", f"{case.name}: cannot read", found.detail)
        return found if files(folder) == before else Outcome(found.target, "defect", f"{case.name}: files", "changed")


def own_folder(bench: Bench, rng: random.Random) -> Outcome:
    """Run as a user without a home, in a folder that belongs to it, over a bundle of another user."""
    if os.geteuid() != 0:
        return Outcome("another user, folder of its own", "ok", "skipped: needs root")
    case = bench.cases[pick(rng, CHEAP, ("ugsep build",))]
    with tempfile.TemporaryDirectory(prefix="ugsep-reliability-") as place:
        Path(place).chmod(0o755)
        folder = bench.lay_out(Path(place) / "try", 0o777)
        (folder / "tmp").chmod(0o777)
        environ = {"HOME": None, "XDG_CACHE_HOME": None} if rng.random() < 0.5 else {"HOME": str(folder / "none")}
        order = bench.order(case, folder, uid=_STRANGER, output=Path(place) / "output", environ=environ)
        ended = bench.children.run(order, SECONDS)
        found = verdict("another user, folder of its own", case.name, ended)
        if found.result == "refused" and case.name != "ugsep build":  # which wants a cache in a home
            return Outcome(found.target, "defect", f"{case.name}: refused", found.detail)
        return found


def private_umask(bench: Bench, rng: random.Random) -> Outcome:
    """Run with umask 077: the result is the same, and nobody else may read it."""
    case = bench.cases[pick(rng, WRITERS)]
    folder = bench.lay_out(bench.folder / "try")
    before = files(folder)
    ended = bench.children.run(bench.order(case, folder, umask=0o077), SECONDS)
    found = judged(bench, case, folder, before, ended, "umask 077", case.name, (0,))
    return found


def no_home(bench: Bench, rng: random.Random) -> Outcome:
    """Run without HOME, TMPDIR and XDG_CACHE_HOME, or with ones that are not there."""
    case = bench.cases[pick(rng, CHEAP)]
    missing = str(bench.folder / "not" / "there")
    environ: dict[str, str | None] = {name: rng.choice([None, missing, ""]) for name in ("HOME", "TMPDIR")}
    return tried(bench, case, "no HOME, no TMPDIR", case.name, environ=environ)


def odd_names(bench: Bench, rng: random.Random) -> Outcome:
    """Run in a folder with an odd name, given by its absolute path."""
    case = bench.cases[pick(rng, CHEAP)]
    name = rng.choice(_NAMES)
    folder = bench.lay_out(bench.folder / "odd" / name)
    before = files(folder)
    try:
        ended = bench.children.run(bench.order(case, folder), SECONDS)
        found = judged(bench, case, folder, before, ended, "odd paths", f"{case.name} in {name[:20]!a}")
    finally:
        shutil.rmtree(folder.parent)
    if found.result == "refused":
        return Outcome(found.target, "defect", f"{found.kind}: refused", found.detail)
    return Outcome(found.target, found.result, case.name if found.result == "ok" else found.kind, found.detail)


def no_folder(bench: Bench, rng: random.Random) -> Outcome:
    """Run in a working directory that was removed, with absolute paths."""
    case = bench.cases[pick(rng, CHEAP, COSTLY)]
    gone = bench.folder / "gone"
    gone.mkdir(exist_ok=True)
    return tried(bench, case, "deleted working directory", case.name, cwd=gone, remove_cwd=True)

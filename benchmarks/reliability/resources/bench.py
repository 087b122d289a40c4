"""A command in a scarce place, and the verdict on how it ended."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.reliability.children.client import Children, Ended
from benchmarks.reliability.children.order import Order
from benchmarks.reliability.contract import Outcome
from benchmarks.reliability.kill.trees import difference, tree
from graphs.base.errors import printable_line

SECONDS = 300.0
_BROKEN = (
    "Traceback (most recent",
    "Exception ignored",
    "Segmentation fault",
    "terminate called",
    "Fatal Python error",
)


@dataclass(frozen=True)
class Case:
    """A command with files of its own.

    Args:
        name: as in the report.
        argv: of the folder that it may write to, which holds a copy of a bundle as ``bundle``.
        volatile: names of files that hold times.
        resumes: whether a run that was interrupted leaves state that the next one uses.
        environ: variables that it needs.
        writes: whether it leaves a result.
    """

    name: str
    argv: Callable[[Path], tuple[str, ...]]
    volatile: tuple[str, ...] = ()
    resumes: bool = False
    environ: Mapping[str, str] = field(default_factory=dict)
    writes: bool = True


@dataclass
class Bench:
    """The workspace: a fork server, a bundle, the cases, and what each leaves when nothing is scarce."""

    folder: Path
    children: Children
    resources: contextlib.ExitStack
    bundle: Path
    cases: Mapping[str, Case]
    expected: dict[str, dict[str, str]] = field(default_factory=dict)

    def lay_out(self, folder: Path, mode: int = 0o755) -> Path:
        """Make a folder with a copy of the bundle, and one for temporary files."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        shutil.copytree(self.bundle, folder / "bundle")
        (folder / "tmp").mkdir(mode=0o777)
        folder.chmod(mode)
        return folder

    def order(self, case: Case, folder: Path, **changes: Any) -> Order:
        """Return the order of a case; ``changes`` are fields of it."""
        output = changes.pop("output", self.folder / "output")
        environ = {"TMPDIR": str(folder / "tmp"), "XDG_CACHE_HOME": str(folder / "cache"), **case.environ}
        environ |= changes.pop("environ", {})
        return Order(case.argv(folder), changes.pop("cwd", folder), output, environ, **changes)

    def whole(self, case: Case) -> dict[str, str]:
        """Return what a case leaves when nothing is scarce."""
        if case.name not in self.expected:
            folder = self.lay_out(self.folder / "expected")
            if case.writes:
                ended = self.children.run(self.order(case, folder), SECONDS)
                assert ended.status == 0, f"{case.name}: {ended.status}: {ended.stderr[-500:]}"
            self.expected[case.name] = files(folder)
        return self.expected[case.name]


def files(folder: Path) -> dict[str, str]:
    """Return what is in a folder, without what PyTorch itself keeps among temporary files."""
    return {path: content for path, content in tree(folder).items() if not path.startswith("tmp/torchinductor_")}


def verdict(target: str, kind: str, ended: Ended, statuses: tuple[int, ...] = (0, 2)) -> Outcome:
    """Judge how a command ended by its status and what it said: one line for a person, and no traceback."""

    def defect(what: str, detail: str) -> Outcome:
        return Outcome(target, "defect", f"{kind}: {what}", printable_line(detail)[-400:])

    if ended.late:
        return defect("a hang", f"no end within {SECONDS:.0f} s")
    if ended.status < 0:
        return defect("a signal", f"{ended.status}: {ended.last_line}")
    for sign in _BROKEN:
        if sign in ended.stderr:
            return defect("a traceback", ended.stderr[-2000:])
    if ended.status not in statuses:
        return defect("another status", f"{ended.status}: {ended.last_line}")
    if ended.status == 0 or (ended.status == 130 and ended.stderr.endswith("aborted\n")):
        return Outcome(target, "ok", kind)
    last = ended.stderr.rstrip("\n").split("\n")[-1]
    if not last.isprintable() or not last.startswith(("error: ", "aborted")):
        return defect("no line that says why", ended.stderr[-400:])
    return Outcome(target, "refused", kind, last[-300:])


def state_problem(bench: Bench, case: Case, folder: Path, ended: Ended, before: Mapping[str, str]) -> str:
    """Return what is wrong with the files after a command: a whole result, or what was there before."""
    found, whole = files(folder), bench.whole(case)
    if ended.status == 0:
        return difference(found, whole, case.volatile)
    if case.resumes:
        return ""
    if problem := difference({p: c for p, c in found.items() if p in before}, before, case.volatile):
        return f"after an error: {problem}"
    known = {path.split("/")[0] for path in (*before, *whole)}
    left = [path for path in found if path not in before and (path not in whole or path.split("/")[0] not in known)]
    return f"after an error, left over: {', '.join(left[:3])}" if left else ""


def again(bench: Bench, case: Case, folder: Path) -> str:
    """Run a case with nothing scarce where it failed before, and return what is wrong, or ""."""
    ended = bench.children.run(bench.order(case, folder), SECONDS)
    if ended.status:
        return f"the next run failed: {ended.status}: {ended.last_line}"
    problem = difference(files(folder), bench.whole(case), case.volatile)
    return f"the next run: {problem}" if problem else ""


def tried(bench: Bench, case: Case, target: str, kind: str, **changes: Any) -> Outcome:
    """Run a case under conditions, and judge it."""
    folder = bench.lay_out(bench.folder / "try")
    before = files(folder)
    ended = bench.children.run(bench.order(case, folder, **changes), SECONDS)
    return judged(bench, case, folder, before, ended, target, kind)


def judged(
    bench: Bench,
    case: Case,
    folder: Path,
    before: Mapping[str, str],
    ended: Ended,
    target: str,
    kind: str,
    statuses: tuple[int, ...] = (0, 2),
) -> Outcome:
    """Judge a command by what it said and what it left and, if it failed, by whether the next run succeeds."""
    found = verdict(target, kind, ended, statuses)
    if found.result == "defect":
        return found
    problem = state_problem(bench, case, folder, ended, before)
    if not problem and ended.status:  # a whole result needs no second run: it was compared, file by file
        problem = again(bench, case, folder)
    return Outcome(target, "defect", f"{kind}: files", printable_line(problem)) if problem else found

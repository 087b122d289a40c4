"""Fuzz one target in processes of its own, until its time or its inputs are used up."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.reliability.fuzz.guided.figures import Figures, kept_defects, read_figures, write_figures
from benchmarks.reliability.fuzz.guided.order import COUNTS, DEFECTS, RESULTS, ROOT, Order
from benchmarks.reliability.fuzz.guided.table import Target
from benchmarks.reliability.fuzz.judge import Verdict
from graphs.base.errors import UgsepError, printable_line

__all__ = ["Bounds", "check_installed", "cover", "replay"]

_CHILD = "benchmarks.reliability.fuzz.guided.child"
_ARTIFACTS, _CORPUS, _LOG = "artifacts", "corpus", "log"
_LONGEST_INPUT = 1 << 16  # bytes
_MEMORY_MB = 2560  # PyTorch alone takes 300
#: An input of 64 KB takes no parser a tenth of a second. The fuzzer's own limit is by the clock, and the machine may
#: have no time to spare for us: what exceeds it is tried again by processor time.
_CLOCK_SECONDS, _PROCESSOR_SECONDS = 120, 10
_REPLAY_SECONDS = 600.0
_STATUS = re.compile(r"^#\d+\s+\w+\s+cov: (\d+) ft: (\d+) corp: (\d+)/", re.MULTILINE)


@dataclass(frozen=True)
class Bounds:
    """Where a run ends: after so many seconds, or so many inputs; at least one of them is given."""

    seconds: float | None = None
    inputs: int | None = None


def check_installed() -> None:
    """Check that the fuzzer is there.

    Raises:
        UgsepError: it is not.
    """
    if importlib.util.find_spec("atheris") is None:
        raise UgsepError("atheris is not installed; pip install 'ugsep[fuzz]' (Linux on x86-64, Python 3.11 to 3.13)")


def cover(target: Target, folder: Path, seed: int, bounds: Bounds, fresh: bool = False) -> Figures:
    """Fuzz a target and return its figures, those of earlier runs in the same folder included.

    The corpus is kept in the folder and every run starts from it. Kept inputs of earlier defects are tried first:
    those that are mended move to the corpus.

    Args:
        target: what to fuzz.
        folder: of the target, made if it is missing.
        seed: of the fuzzer's random numbers. What it tries also follows the coverage, which differs between runs by
            what does not repeat in a process, so that a seed alone repeats nothing: kept inputs do.
        bounds: where to stop.
        fresh: discard the corpus, the figures and the defects of earlier runs.

    Raises:
        UgsepError: the fuzzing process ends without an input to blame, for example because the parser cannot be
            imported.
    """
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    for name in (_ARTIFACTS, _CORPUS, DEFECTS):
        (folder / name).mkdir(parents=True, exist_ok=True)
    _retire(target, folder)
    found = read_figures(folder)
    began, first = time.monotonic(), found.inputs
    while True:
        left = None if bounds.seconds is None else bounds.seconds - (time.monotonic() - began)
        inputs = None if bounds.inputs is None else bounds.inputs - (found.inputs - first)
        if (left is not None and left < 1) or (inputs is not None and inputs < 1):
            return found
        before = found.inputs
        status = _run(target, folder, _flags(folder, seed, found.processes, left, inputs))
        found = _added(folder, replace(found, seed=seed))
        blamed = _blamed(target, folder)
        found = replace(found, defects=len(kept_defects(folder)))
        write_figures(folder, found)
        if status == 0:
            return found
        if found.inputs == before or not blamed:
            raise UgsepError(f"{target.name}: the fuzzer ended with {status}: {_last(folder / _LOG)}")


def replay(target: Target, file: Path) -> Verdict:
    """Give the content of a file to a target's parser in a process of its own, and judge how it ends.

    Raises:
        UgsepError: the parser cannot be imported.
    """
    order = Order(target.module, target.factory, (), "", replay=str(file.absolute()), seconds=_PROCESSOR_SECONDS)
    done = subprocess.run(
        _command(order), cwd=ROOT, env=_environ(), capture_output=True, timeout=_REPLAY_SECONDS, check=False
    )
    lines = done.stdout.decode(errors="replace").splitlines()
    if done.returncode == 0 and lines:
        return Verdict(**json.loads(lines[-1]))
    if done.returncode == -signal.SIGXCPU:
        return Verdict("defect", f"more than {_PROCESSOR_SECONDS} s of processor time")
    said = printable_line((done.stderr.decode(errors="replace").strip().splitlines() or [""])[-1])
    if done.returncode > 0:
        raise UgsepError(f"{target.name}: cannot be replayed: {said}")
    return Verdict("defect", f"signal {-done.returncode}", said[:300])


def _run(target: Target, folder: Path, flags: tuple[str, ...]) -> int:
    order = Order(target.module, target.factory, target.watched, str(folder.absolute()), flags)
    with (folder / _LOG).open("wb") as log:
        child = subprocess.Popen(
            _command(order), cwd=ROOT, env=_environ(), stdout=log, stderr=log, start_new_session=True
        )
        try:
            return child.wait()
        finally:  # also after Ctrl-C
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
                write_figures(folder, _added(folder, read_figures(folder)))


def _command(order: Order) -> list[str]:
    return [sys.executable, "-m", _CHILD, order.text()]


def _environ() -> dict[str, str]:
    """Return an environment in which sets have the same order in every process."""
    return {**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}


def _flags(folder: Path, seed: int, number: int, seconds: float | None, inputs: int | None) -> tuple[str, ...]:
    flags = [
        f"-seed={1 + (seed * 1_000_003 + number) % (2**31 - 2)}",  # 0 would be another one every time
        f"-artifact_prefix={folder.absolute() / _ARTIFACTS}{os.sep}",
        f"-max_len={_LONGEST_INPUT}",
        f"-rss_limit_mb={_MEMORY_MB}",
        f"-timeout={_CLOCK_SECONDS}",
        f"-report_slow_units={_CLOCK_SECONDS}",
        "-reload=0",
        "-mutate_depth=2",  # mutations on top of each other; a few more, and everything is refused at the door
    ]
    if seconds is not None:
        flags.append(f"-max_total_time={max(1, int(seconds))}")
    if inputs is not None:
        flags.append(f"-runs={inputs}")
    return tuple(flags)


def _added(folder: Path, found: Figures) -> Figures:
    """Return the figures with the counts of the process that ended last, and take those away."""
    path, log = folder / COUNTS, folder / _LOG
    counts = struct.unpack(f"<{len(RESULTS)}Q", path.read_bytes()) if path.exists() else (0,) * len(RESULTS)
    path.unlink(missing_ok=True)
    ok, refused, _ = counts
    reached = _STATUS.findall(log.read_text(errors="replace"))
    edges, features, _ = map(int, reached[-1]) if reached else (found.edges, found.features, 0)
    return replace(
        found,
        processes=found.processes + 1,
        inputs=found.inputs + sum(counts),
        ok=found.ok + ok,
        refused=found.refused + refused,
        edges=max(edges, found.edges),
        features=max(features, found.features),
        corpus=len(list((folder / _CORPUS).iterdir())),
    )


def _blamed(target: Target, folder: Path) -> bool:
    """Move the inputs that ended the process to the defects; return whether there were any.

    One that took too long by the clock only is forgotten.
    """
    blamed = sorted((folder / _ARTIFACTS).iterdir())
    for path in blamed:
        sort = path.name.partition("-")[0]
        verdict = replay(target, path)
        if verdict.result != "defect" and sort != "timeout":
            verdict = Verdict("defect", f"only after other inputs: {sort}", _last(folder / _LOG))
        if verdict.result == "defect" and verdict.kind not in {kind for _, kind, _ in kept_defects(folder)}:
            kept = folder / DEFECTS / f"{path.name[-16:]}.input"
            shutil.copyfile(path, kept)
            kept.with_suffix(".json").write_text(json.dumps({"kind": verdict.kind, "detail": verdict.detail}))
        path.unlink()
    return bool(blamed)


def _retire(target: Target, folder: Path) -> None:
    """Move kept inputs that are no defect any more to the corpus."""
    for path, _, _ in kept_defects(folder):
        if replay(target, path).result != "defect":
            path.with_suffix(".json").unlink()
            shutil.move(path, folder / _CORPUS / path.stem)


def _last(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line or "ERROR" in line]
    return printable_line((errors or lines or ["nothing was said"])[-1])[:300]

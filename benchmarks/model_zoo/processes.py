"""A model measured in a process of its own, which may crash or take too long."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from benchmarks.model_zoo.environment import ROOT
from benchmarks.model_zoo.packages.table import names
from benchmarks.model_zoo.results import Result, load


def measured(python: Path, name: str, scratch: Path, rounds: int, seconds: int) -> Result:
    """Measure one model with an environment's interpreter; ``scratch`` is where it leaves its result.

    A process that crashes, or takes more than ``seconds``, gives a result that says so.
    """
    package, model = names()[name]
    started = time.perf_counter()
    (scratch / f"{name}.json").unlink(missing_ok=True)
    command = [
        str(python),
        "-m",
        "benchmarks.model_zoo",
        "one",
        name,
        str(scratch.absolute()),
        "--rounds",
        str(rounds),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds, cwd=ROOT)
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = f"status {done.returncode}: {lines[-1] if lines else 'no output'}"
    except subprocess.TimeoutExpired:
        reason = f"took more than {seconds} s"
    taken = round(time.perf_counter() - started, 1)
    return load(scratch, name) or Result(package, model, "failed", reason, seconds=taken)

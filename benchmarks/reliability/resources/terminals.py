"""Readers that leave, terminals of 20 columns, and no locale: as processes of their own, as a shell starts them."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

from benchmarks.reliability.children.client import Ended
from benchmarks.reliability.contract import Outcome
from benchmarks.reliability.resources.bench import SECONDS, Bench, verdict
from graphs.base.errors import printable_line

_ROOT = Path(__file__).parents[3]
_ENTRY = "import sys; from engines.cli.entry import {0}; sys.argv[0] = '{0}'; {0}()"


def closed_pipe(bench: Bench, rng: random.Random) -> Outcome:
    """Write to a pipe whose reader leaves after some bytes, to a full device, or to nothing."""
    name, argv = _reading(bench, rng)
    way = rng.choice(["head", "full", "closed"])
    kind = f"{name} | {way}"
    if way == "full":
        ended = _run(argv, 'exec "$@" > /dev/full')
        return _without_traceback("closed pipes", kind, ended, (0, 1, 2))
    if way == "closed":
        return _without_traceback("closed pipes", kind, _run(argv, 'exec "$@" >&-'), (0, 1, 2))
    count = rng.choice([0, 1, 100])
    ended = _run(argv, f'"$@" | head -c {count} >/dev/null; exit "${{PIPESTATUS[0]}}"')
    return _without_traceback("closed pipes", kind, ended, (0, 1, 141))


def narrow(bench: Bench, rng: random.Random) -> Outcome:
    """Print into few columns."""
    name, argv = _reading(bench, rng)
    columns = rng.choice([1, 2, 5, 20])
    ended = _run(argv, 'exec "$@"', COLUMNS=str(columns), LINES="5", FORCE_COLOR=rng.choice(["", "1"]))
    return verdict("narrow terminals", f"{name} in {columns} columns", ended, (0,))


def ascii_only(bench: Bench, rng: random.Random) -> Outcome:
    """Print names beyond ASCII without a locale that could."""
    folder = bench.lay_out(bench.folder / "ascii" / rng.choice(["naïve", "日本語"]))
    name, argv = _reading(bench, rng, folder)
    environ = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    return verdict("LANG=C", name, _run(argv, 'exec "$@"', **environ), (0,))


def early_ctrl_c(bench: Bench, rng: random.Random) -> Outcome:
    """Send SIGINT to a command while it starts: before its first line, Python imports for seconds."""
    name, argv = _reading(bench, rng)
    script = f'"$@" & sleep {rng.random() * 3:.3f}; kill -INT $!; wait $!'
    ended = _run(argv, f"set -m; {script}")
    target = "Ctrl-C while starting"
    if "Traceback" in ended.stderr and "in _run" not in ended.stderr:  # before a line of ours could catch it
        return Outcome(target, "ok", f"{name}, before its first line")
    if "Traceback" in ended.stderr or ended.status not in (0, 130, -signal.SIGINT):
        return Outcome(target, "defect", f"{name}: status {ended.status}", printable_line(ended.stderr[-300:]))
    return Outcome(target, "ok", name)


def _reading(bench: Bench, rng: random.Random, folder: Path | None = None) -> tuple[str, list[str]]:
    """Choose a command that prints."""
    bundle = str((folder or bench.folder / "shown") / "bundle")
    if folder is None and not Path(bundle).exists():
        bench.lay_out(bench.folder / "shown")
    chosen = rng.choice(
        [
            ("ugsep", "inspect", bundle),
            ("quant", "inspect", bundle),
            ("ugsep", "verify", bundle),
            ("ugsep", "--help"),
            ("ugsep", "build", "--help"),
            ("ugsep", "models"),
        ]
    )
    return " ".join(chosen[:2]), [sys.executable, "-c", _ENTRY.format(chosen[0]), *chosen[1:]]


def _run(argv: list[str], script: str, **environ: str) -> Ended:
    command = ["bash", "-c", script, "bash", *argv]
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")} | environ
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=_ROOT, env=kept
    ) as process:
        try:
            stdout, stderr = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            return Ended(-signal.SIGKILL, "", "", late=True)
    return Ended(process.returncode, stdout.decode("utf-8", "replace"), stderr.decode("utf-8", "backslashreplace"))


def _without_traceback(target: str, kind: str, ended: Ended, statuses: tuple[int, ...]) -> Outcome:
    """Judge a command that nobody reads: it need not say why it ended."""
    if ended.late or ended.status not in statuses:
        return Outcome(target, "defect", f"{kind}: status {ended.status}", printable_line(ended.stderr[-300:]))
    for sign in ("Traceback", "Exception ignored", "BrokenPipeError"):
        if sign in ended.stderr:
            return Outcome(target, "defect", f"{kind}: {sign}", printable_line(ended.stderr[-300:]))
    return Outcome(target, "ok", kind)

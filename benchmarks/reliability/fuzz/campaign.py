"""The campaign: a mutation, the commands that read it, and a judgement of all that can be seen of them."""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass
from pathlib import Path

from benchmarks.reliability.contract import Campaign, Outcome
from benchmarks.reliability.fuzz.attack import Attack, Run
from benchmarks.reliability.fuzz.inputs import Inputs, make_inputs
from benchmarks.reliability.fuzz.judge import Verdict, judge, shown
from benchmarks.reliability.fuzz.programs import PROGRAMS, import_all
from benchmarks.reliability.fuzz.targets.table import ORDER
from benchmarks.reliability.fuzz.worker import Ended, Worker

__all__ = ["CAMPAIGN"]

LIMIT = 60.0  # seconds of a processor that a run may use
MAKING = 300.0  # of the commands that make the inputs


@dataclass(frozen=True)
class Workspace:
    """The sound inputs and their fingerprint, a worker for the tries, and the folder of the try that runs."""

    inputs: Inputs
    state: dict[str, tuple[int, int]]
    worker: Worker
    folder: Path


def prepare(folder: Path) -> Workspace:
    """Make the inputs with the real commands."""
    import_all()
    sound = folder / "sound"
    sound.mkdir()
    with Worker(PROGRAMS, folder / "making", MAKING) as maker:
        inputs = make_inputs(sound, maker)
    return Workspace(inputs, _fingerprint(sound), Worker(PROGRAMS, folder / "said", LIMIT), folder / "try")


def attempt(workspace: Workspace, index: int, rng: random.Random) -> Outcome:
    """Mutate one target and judge every run; a defect is tried again in a fresh process."""
    number, place = divmod(index, len(ORDER))
    name, target = ORDER[place]
    state = rng.getstate()
    first: Verdict | None = None
    for _ in range(2):
        shutil.rmtree(workspace.folder, ignore_errors=True)
        workspace.folder.mkdir()
        attack = target(workspace.inputs, workspace.folder, number, rng)
        verdict = _judged(workspace, attack)
        if verdict.result != "defect":
            break
        first = first or verdict
        workspace.worker.close()
        rng.setstate(state)
    if verdict.result != "defect" and first is not None:
        verdict = Verdict("defect", f"only after other tries: {first.kind}", first.detail)
    measures = {"flips": float(attack.flips)} if attack.flips else {}
    detail = verdict.detail if verdict.result == "defect" else ""
    return Outcome(name, verdict.result, verdict.kind, detail.replace(str(workspace.folder), "TRY"), measures)


def close(workspace: Workspace) -> None:
    """End the worker."""
    workspace.worker.close()


def _judged(workspace: Workspace, attack: Attack) -> Verdict:
    ended: list[Ended] = []
    verdicts: list[Verdict] = []
    for run in attack.runs:
        ended.append(workspace.worker.run(run.program, run.arguments))
        verdicts.append(judge(ended[-1], run.command))
        if verdicts[-1].result == "defect":
            return verdicts[-1]
        if verdicts[-1].result == "refused" and run.writes is not None and (left := _left(run.writes)):
            if any(not name.startswith(".") for name in left) or not _resumes(workspace, run):
                return Verdict("defect", "half-written", f"{shown(run.command)}: {left}")
    wrong = attack.wrong(ended)
    if wrong:
        return Verdict("defect", wrong, _commands(attack))
    if _fingerprint(workspace.inputs.folder) != workspace.state:
        return Verdict("defect", "an input was changed", _commands(attack))
    return next((verdict for verdict in verdicts if verdict.result == "refused"), verdicts[0])


def _resumes(workspace: Workspace, run: Run) -> bool:
    """Return whether the state that a refused command left is taken up, and taken away, by a run on sound input."""
    if run.resumed_by is None or run.writes is None:
        return False
    again = workspace.worker.run(run.program, run.resumed_by)
    left = _left(run.writes)
    return again.status == 0 and bool(left) and not any(name.startswith(".") for name in left)


def _commands(attack: Attack) -> str:
    return " && ".join(shown(run.command) for run in attack.runs)


def _left(path: Path) -> list[str]:
    """Return the files at a path that a refused command was to write."""
    if path.is_file():
        return [path.name]
    return sorted(str(found.relative_to(path)) for found in path.rglob("*") if not found.is_dir())


def _fingerprint(folder: Path) -> dict[str, tuple[int, int]]:
    found = ((path, path.stat()) for path in folder.rglob("*") if path.is_file())
    return {str(path): (status.st_size, status.st_mtime_ns) for path, status in found}


CAMPAIGN = Campaign(
    name="fuzz",
    goal=(
        "Mutated manifests, bundle files, graphs, checkpoints, requests, recipes and options are refused in one "
        "printable line or answered rightly: no traceback, signal, hang or wrong score that passes."
    ),
    prepare=prepare,
    attempt=attempt,
    short_tries=102,
    long_tries=20_400,
    close=close,
)

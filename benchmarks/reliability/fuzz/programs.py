"""What a worker runs: both commands, and small commands around the readers that no command calls alone."""

from __future__ import annotations

import importlib
import itertools
import os
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import click
import numpy as np
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import torch
from click.testing import CliRunner

from benchmarks.reliability.fuzz.mutate.request_files import npz_bytes
from engines.bundle.bundle import Bundle
from engines.bundle.fixtures import read_fixtures
from engines.cli.commands import COMMANDS
from engines.cli.group import Command
from engines.cli.main import main as ugsep
from engines.cli.quant.main import main as quant
from engines.serve.ranker import Ranker
from engines.verify.validate import speedup_limits
from graphs.models.pretrained import load_checkpoint

__all__ = ["MISREAD", "PROGRAMS", "import_all"]

PATH = click.Path(path_type=Path)
MISREAD = 3  # the exit status of a wrong value
_HEAVY = ("onnxruntime", "onnxscript", "matplotlib.pyplot", "safetensors.torch", "scipy.stats", "torch.export")


@click.command("scores", cls=Command)
@click.argument("bundle", type=PATH)
@click.argument("requests", type=PATH)
@click.argument("out", type=PATH)
def scores(bundle: Path, requests: Path, out: Path) -> None:
    """Score the requests of an npz file, one row per candidate and the user's features repeated, with a bundle."""
    with np.load(requests) as file, Ranker.from_bundle(bundle) as ranker:
        users, items = ([spec.name for spec in side] for side in (ranker.user_inputs, ranker.item_inputs))
        starts = np.flatnonzero(np.diff(file["request_id"], prepend=-1, append=-1))
        found: dict[str, list[np.ndarray]] = {}
        for start, stop in itertools.pairwise(starts):
            user = {name: file[name][start : start + 1] for name in users if name in file}
            scored = ranker.score(user, {name: file[name][start:stop] for name in items if name in file})
            for task, logits in scored.items():
                found.setdefault(task, []).append(logits)
    out.write_bytes(npz_bytes({task: np.concatenate(logits) for task, logits in found.items()}, random.Random(0)))


@click.command("columns", cls=Command)
@click.argument("bundle", type=PATH)
@click.argument("requests", type=PATH)
def columns(bundle: Path, requests: Path) -> None:
    """Read a request file, and compare every column with what the library of the format makes of it."""
    opened = Bundle.open(bundle)
    read = list(opened.read_requests([requests]))
    spec = opened.request_spec()
    rows = [request.candidates for request in read]
    found = {wanted.name: np.concatenate([r.items[wanted.name] for r in read]) for wanted in spec.item}
    for wanted in spec.user:
        found[wanted.name] = np.concatenate([np.repeat(r.user[wanted.name], r.candidates, axis=0) for r in read])
    found["request_id"] = np.repeat([request.request_id for request in read], rows)
    for name, values in found.items():
        plain = _plainly(requests, name)
        if len(plain) != len(values) or not np.array_equal(plain.ravel(), values.ravel()):
            click.echo(f"error: column '{name}' is read wrongly", err=True)
            click.get_current_context().exit(MISREAD)


def _plainly(path: Path, name: str) -> np.ndarray:
    if path.suffix == ".npz":
        with np.load(path) as file:
            return np.asarray(file[name])
    if path.suffix == ".parquet":
        return np.array(pq.read_table(path).column(name).to_pylist())
    with path.open("rb") as file:
        start = file.read(6)
    table = (ipc.open_file if start == b"ARROW1" else ipc.open_stream)(path).read_all()
    return np.array(table.column(name).to_pylist())


@click.command("report", cls=Command)
@click.argument("bundle", type=PATH)
def report(bundle: Path) -> None:
    """Read the report and the recipe of a bundle as ``ugsep validate`` does."""
    opened = Bundle.open(bundle)
    speedup_limits(opened, opened.recipe.serving.candidates)


@click.command("fixtures", cls=Command)
@click.argument("bundle", type=PATH)
def fixtures(bundle: Path) -> None:
    """Read the fixtures of a bundle."""
    read_fixtures(bundle)


@click.command("checkpoint", cls=Command)
@click.argument("folder", type=PATH)
def checkpoint(folder: Path) -> None:
    """Load a checkpoint."""
    load_checkpoint(folder)


@click.command("flips", cls=Command)
@click.argument("bundle", type=PATH)
@click.argument("name")
@click.argument("start", type=int)
@click.argument("count", type=int)
@click.argument("seed", type=int)
def flips(bundle: Path, name: str, start: int, count: int, seed: int) -> None:
    """Change ``count`` bytes of a file one after another and let ``ugsep verify`` look at each."""
    rng, runner = random.Random(seed), CliRunner()
    with (bundle / name).open("r+b", buffering=0) as file:
        for at in range(start, start + count):
            old = os.pread(file.fileno(), 1, at)
            os.pwrite(file.fileno(), bytes([old[0] ^ rng.randrange(1, 256)]), at)
            said = runner.invoke(ugsep, ["verify", str(bundle)])
            sound = said.exit_code == 2 and said.stderr.startswith("error: ") and said.output[:-1].isprintable()
            if not sound:
                click.echo(f"error: byte {at} of {name}: status {said.exit_code}, {said.output[:200]!a}", err=True)
                click.get_current_context().exit(MISREAD)
            os.pwrite(file.fileno(), old, at)


def import_all() -> None:
    """Import what the commands import when they run, so that forked children do not."""
    torch.set_num_threads(1)
    for entry in COMMANDS.values():
        importlib.import_module(entry.module)
    for name in _HEAVY:
        importlib.import_module(name)


def _named(command: click.Command, name: str) -> Callable[[Sequence[str]], object]:
    return lambda arguments: command.main(list(arguments), prog_name=name)


PROGRAMS: Mapping[str, Callable[[Sequence[str]], object]] = {
    "ugsep": _named(ugsep, "ugsep"),
    "quant": _named(quant, "quant"),
    "scores": _named(scores, "scores"),
    "columns": _named(columns, "columns"),
    "report": _named(report, "report"),
    "fixtures": _named(fixtures, "fixtures"),
    "flips": _named(flips, "flips"),
    "checkpoint": _named(checkpoint, "checkpoint"),
}

"""Measure what splitting saves on third-party models and on ours: ``python -m tests.graphs.split_table``.

Prints a Markdown table: share of the FLOPs that runs once per request, FLOP limit and measured speed-up at 256
candidates (ONNX Runtime, one thread, the same CPU lowering for the whole model and the subgraphs, medians of
interleaved runs), state bytes per user, with and without hoisting, and the largest score difference.
"""

from __future__ import annotations

import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime
import torch
from torch import Tensor

from export.lowering import lower_for_cpu, lower_for_one_user
from export.metadata import Stamp
from export.onnx_file import export_subgraph
from graphs.base.errors import UgsepError
from graphs.base.features import random_rows
from graphs.base.names import USER_INDEX
from graphs.models.table import model_class
from graphs.split.fresh_rows import fresh_rows
from graphs.split.proof import prove_split
from graphs.split.split import Split, Subgraph, split
from tests.graphs.model_laws import FEATURES
from tests.graphs.third_party_models import THIRD_PARTY, ThirdPartyModel, make

CANDIDATES = 256
ROUNDS, SECONDS = 9, 4.0

# Ours at 16 tokens, 12 of the user's and 4 of the items'.
OURS: dict[str, dict[str, Any]] = {
    "rankmixer": {"hidden": 1024, "embedding_width": 64},
    "tokenmixer-large": {"hidden": 512},
    "zenith": {"hidden": 512},
    "zenith-pp": {"hidden": 64, "experts": 4, "active_experts": 2, "attention_heads": 4},
    "unimixer": {"hidden": 512, "block": 16, "embedding_width": 64},
}


def ours(name: str, ug_sep: bool) -> ThirdPartyModel:
    """Build one of our models, T 16, D 256, L 2."""
    torch.manual_seed(0)
    kind = model_class(name)
    settings = {"width": 256, "layers": 2, "user_tokens": 12, "item_tokens": 4, **OURS[name]}
    model = kind(kind.config_class(features=FEATURES, ug_sep=ug_sep, **settings)).eval()
    example = {"features": random_rows(FEATURES, 4, torch.Generator().manual_seed(0))}
    sides = {side: tuple(f.name for f in FEATURES if f.side == side) for side in ("user", "item")}
    return ThirdPartyModel(model, example, sides["user"], sides["item"])


def models() -> Iterator[tuple[str, Callable[[], ThirdPartyModel]]]:
    """Yield name and factory of every model in the table."""
    for name in THIRD_PARTY:
        yield name, lambda name=name: make(name)
    for name in OURS:
        yield f"{name} 3:1, unmasked", lambda name=name: ours(name, False)
        yield f"{name} 3:1, UG-Sep", lambda name=name: ours(name, True)


Runner = Callable[[], Any]


def session(subgraph: Subgraph, feeds: dict[str, Tensor], state: tuple[str, ...], folder: Path, name: str) -> Runner:
    """Export a subgraph, lower it for the CPU (the item graph for one user), and return a function that runs it."""
    stamp = Stamp("table", "full", "fp32", ())
    two = {n: torch.cat([feeds[n], feeds[n]])[: max(2, len(feeds[n]))] for n in subgraph.inputs}
    rows = {n: "users" if n in state else "candidates" for n in subgraph.inputs}
    path = folder / f"{name}.onnx"
    export_subgraph(subgraph, two, rows, folder / f"{name}.source.onnx", stamp)
    lower_for_cpu(folder / f"{name}.source.onnx", path)
    if name == "item":
        source, path = path, folder / "item.one_user.onnx"
        if not lower_for_one_user(source, path):
            raise UgsepError("the item graph gathers no state")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    loaded = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    arrays = {i.name: np.ascontiguousarray(feeds[i.name].numpy()) for i in loaded.get_inputs()}
    return lambda: loaded.run(None, arrays)


def measure_split(split_model: Split) -> tuple[float, float, float]:
    """Return the median milliseconds of the whole model, the user graph and the item graph, interleaved."""
    example = dict(zip(split_model.traced.inputs, split_model.traced.example, strict=True))
    drawn = fresh_rows(example, CANDIDATES, torch.Generator().manual_seed(1))
    of_user = {n: drawn[n][:1] for n in split_model.user_inputs}
    of_items = {n: drawn[n] for n in split_model.item_inputs}
    repeated = {n: v.repeat(CANDIDATES, *[1] * (v.dim() - 1)) for n, v in of_user.items()}
    state, index = split_model.user(of_user), torch.zeros(CANDIDATES, dtype=torch.int64)
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        runs = [
            session(split_model.full, {**repeated, **of_items}, (), folder, "full"),
            session(split_model.user, of_user, (), folder, "user"),
            session(split_model.item, {**of_items, **state, USER_INDEX: index}, tuple(state), folder, "item"),
        ]
        scores = np.concatenate([s.ravel() for s in runs[0]()])
        apart = np.concatenate([s.ravel() for s in runs[2]()])
        if not np.abs(scores - apart).max() <= 1e-5 * max(1.0, np.abs(scores).max()):
            raise UgsepError(
                f"scores differ by {np.abs(scores - apart).max():.3g} in ONNX Runtime; look at the lowering"
            )
        times: list[list[float]] = [[], [], []]
        start = time.perf_counter()
        while len(times[0]) < ROUNDS or (time.perf_counter() - start < SECONDS and len(times[0]) < 200):
            for run, taken in zip(runs, times, strict=True):
                began = time.perf_counter()
                run()
                taken.append((time.perf_counter() - began) * 1e3)
    full, user, item = (statistics.median(t) for t in times)
    return full, user, item


def row(name: str, model: ThirdPartyModel) -> str:
    """Return a model's line in the table."""
    cells = [name]
    exact = 0.0
    for hoisting in (False, True):
        split_model = split(model.module, model.example, user=model.user, item=model.item, hoisting=hoisting)
        exact = max(exact, prove_split(split_model).max_abs)
        full, user, item = measure_split(split_model)
        cells += [
            f"{split_model.reusable_share:.0%}".replace("%", " %"),
            f"{split_model.speedup_limit(CANDIDATES):.2f}x",
            f"{full / (user + item):.2f}x",
            f"{split_model.state_bytes}",
        ]
    return f"| {' | '.join([*cells, f'{exact:.1e}'])} |"


@click.command()
@click.option("--only", default="", help="Measure only models whose name contains this.")
def main(only: str) -> None:
    """Print the table."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    click.echo(
        "| model | share | limit | measured | state B | share, hoisted | limit | measured | state B | max diff |"
    )
    click.echo("|---|---|---|---|---|---|---|---|---|---|")
    for name, factory in models():
        if only in name:
            click.echo(row(name, factory()))


if __name__ == "__main__":
    main()

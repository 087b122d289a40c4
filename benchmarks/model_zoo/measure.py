"""One model on the test bed: split, proven in float64, exported, run by ONNX Runtime, timed."""

from __future__ import annotations

import copy
import dataclasses
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import torch.utils._pytree as pytree
from torch import Tensor

from benchmarks.model_zoo.packages.inputs import ZooModel
from benchmarks.model_zoo.results import Result
from engines.measure.interleave import interleaved
from export.lowering import lower_for_cpu, lower_for_one_user
from export.metadata import Stamp
from export.onnx_file import export_subgraph
from graphs.base.errors import GateFailed, UgsepError
from graphs.base.names import USER_INDEX
from graphs.split.fresh_rows import fresh_rows
from graphs.split.proof import prove_split
from graphs.split.split import Split, Subgraph, split

CANDIDATES, ROUNDS = 256, 30
#: A sum of 1e4 products in another order, with the 2^-53 of float64: 1e4 * 1.1e-16, and a hundred layers of it.
TOLERANCE64 = 1e-10
#: The bound of a build for exported graphs (docs/architecture.md, gates).
TOLERANCE32 = 1e-5
#: Of the largest score: a hundred times TOLERANCE32.
LEAST_SPREAD = 1e-3


def measure(package: str, name: str, model: ZooModel, rounds: int = ROUNDS) -> Result:
    """Take a model through the test bed; what stops it is in the result, not raised."""
    started = time.perf_counter()
    torch.set_num_threads(1)
    parameters = sum(p.numel() for p in model.module.parameters())
    found = Result(package, name, "refused", user=tuple(model.user), item=tuple(model.item))
    found = dataclasses.replace(found, parameters=parameters, candidates=CANDIDATES)
    try:
        cut = split(model.module, model.example, user=model.user, item=model.item)
        found = dataclasses.replace(
            found,
            outcome="wrong",
            share=cut.reusable_share,
            limit=cut.speedup_limit(CANDIDATES),
            state_bytes=cut.state_bytes,
            hoisted=len(cut.hoisted),
        )
        found = dataclasses.replace(found, float32=prove_split(cut).max_rel, float64=_float64(model))
        found = dataclasses.replace(found, outcome="not exported")
        found = _exported(found, cut, rounds)
    except (UgsepError, GateFailed) as error:
        found = dataclasses.replace(found, reason=str(error))
    return dataclasses.replace(found, seconds=round(time.perf_counter() - started, 1))


def _float64(model: ZooModel) -> float | None:
    """Return the largest relative difference of the split in float64, or None if the model does not compute in it.

    Raises:
        GateFailed: it is above TOLERANCE64.
    """
    module = copy.deepcopy(model.module).double()
    example = pytree.tree_map(lambda t: t.double() if t.is_floating_point() else t, model.example)
    try:
        cut = split(module, example, user=model.user, item=model.item)
    except UgsepError:  # float32 was traced before: here the model mixes the two types
        return None
    if any(_is_short(node.meta.get("val")) for node in cut.full.module.graph.nodes):
        return None
    return prove_split(cut, tolerance=TOLERANCE64).max_rel


def _is_short(value: object) -> bool:
    """Return whether a value is a float of fewer bits than float64, made by a part of the model that says so."""
    return isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64


def _exported(found: Result, cut: Split, rounds: int) -> Result:
    """Export the three graphs, compare their scores with PyTorch's, and time them.

    Raises:
        UgsepError: a graph cannot be exported or loaded.
        GateFailed: scores differ by more than TOLERANCE32.
    """
    example = dict(zip(cut.traced.inputs, cut.traced.example, strict=True))
    drawn = fresh_rows(example, CANDIDATES, torch.Generator().manual_seed(1))
    of_user = {n: drawn[n][:1] for n in cut.user_inputs}
    of_items = {n: drawn[n] for n in cut.item_inputs}
    rows = {**{n: v.repeat(CANDIDATES, *[1] * (v.dim() - 1)) for n, v in of_user.items()}, **of_items}
    reference = (cut.traced.original or cut.full)(rows)
    _check_spread(reference)
    state, index = cut.user(of_user), torch.zeros(CANDIDATES, dtype=torch.int64)
    with tempfile.TemporaryDirectory(prefix="model-zoo-") as text:
        folder = Path(text)
        whole = _session(cut.full, rows, (), folder, "full")
        user = _session(cut.user, of_user, (), folder, "user")
        item = _session(cut.item, {**of_items, **state, USER_INDEX: index}, tuple(state), folder, "item")
        given = dict(zip(cut.user.outputs, user.run(), strict=True))
        worst = max(
            _difference(whole.run(), cut.full.outputs, reference),
            _difference(item.run(given), cut.item.outputs, reference),
        )
        found = dataclasses.replace(found, onnx=worst)
        # Where scores are small differences of large sums, sums in another order move PyTorch's own scores as well.
        bound = max(TOLERANCE32, 8 * (found.float32 or 0.0))
        if not worst <= bound:
            raise GateFailed(f"ONNX Runtime's scores differ by {worst:.3g} from PyTorch's; bound {bound:.3g}")
        times = interleaved({"whole": whole.run, "user": user.run, "item": item.run}, rounds)
    return dataclasses.replace(
        found,
        outcome="split",
        rounds=rounds,
        whole_ms=times["whole"].p50,
        user_ms=times["user"].p50,
        item_ms=times["item"].p50,
    )


def _check_spread(scores: Mapping[str, Tensor]) -> None:
    """Check that candidates have different scores: if all were alike, exactness would mean nothing."""
    for name, score in scores.items():
        if not float((score.max() - score.min()) / score.abs().max()) >= LEAST_SPREAD:
            raise GateFailed(f"'{name}' hardly differs between candidates; give the model weights that matter")


@dataclasses.dataclass(frozen=True)
class _Session:
    loaded: Any
    feeds: Mapping[str, Any]

    def run(self, others: Mapping[str, Any] | None = None) -> list[Any]:
        """Run the graph; ``others`` replaces some of what it is fed."""
        feeds = {n: (others or {}).get(n, v) for n, v in self.feeds.items()}
        values: list[Any] = self.loaded.run(None, feeds)
        return values


def _session(
    graph: Subgraph, feeds: Mapping[str, Tensor], state: tuple[str, ...], folder: Path, side: str
) -> _Session:
    """Export and load a graph in its CPU lowering, the item graph for one user."""
    two = {n: torch.cat([feeds[n], feeds[n]])[: max(2, len(feeds[n]))] for n in graph.inputs}
    axes = {n: "users" if n in state or side == "user" else "candidates" for n in graph.inputs}
    source, path = folder / f"{side}.source.onnx", folder / f"{side}.onnx"
    export_subgraph(graph, two, axes, source, Stamp("zoo", "full", "fp32", ()))
    lower_for_cpu(source, path)
    if side == "item" and lower_for_one_user(path, folder / "item.one_user.onnx"):
        path = folder / "item.one_user.onnx"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    make: Callable[..., Any] = onnxruntime.InferenceSession
    try:
        loaded = make(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common base
        raise UgsepError(f"ONNX Runtime cannot load {side}.onnx: {' '.join(str(error).split())}") from error
    return _Session(loaded, {i.name: np.ascontiguousarray(feeds[i.name].numpy()) for i in loaded.get_inputs()})


def _difference(values: list[Any], names: tuple[str, ...], reference: Mapping[str, Tensor]) -> float:
    """Return the largest |value - reference| relative to max(1, largest reference), infinite for a NaN."""
    worst = 0.0
    for name, value in zip(names, values, strict=True):
        expected = reference[name].numpy()
        same = np.where(value == expected, 0.0, np.abs(value.astype(np.float64) - expected))
        worst = max(worst, float(np.nan_to_num(same, nan=np.inf).max()) / max(1.0, float(np.abs(expected).max())))
    return worst

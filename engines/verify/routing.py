"""Which rows an engine gives to other experts than FP32 does, and how nearly tied they were.

A top-k router is a step: if the k-th and the (k+1)-th logit are nearly tied, a small error chooses another
expert and moves that row by more than the error. This tells such rows from rows that differ for another reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engines.backends.contract import Array
from engines.bundle.bundle import Bundle, onnx_file
from engines.bundle.manifest import Manifest, engine_for
from engines.verify.agreement import probability
from engines.verify.bisect import read_onnxruntime
from export.io import read_graph
from graphs.base.errors import UgsepError
from graphs.base.names import SIDES, USER_INDEX, Side
from graphs.base.progress import Progress, ProgressCallback, silent
from quant.requests.spec import Request

BEYOND = 5e-3  # the usual gate on the largest probability difference


@dataclass(frozen=True)
class Routing:
    """How an engine routes the rows of all requests, one entry per row.

    ``error`` is the largest probability difference over the tasks. ``flipped``: some router chose other experts than
    in FP32, ``of_user`` one of the user graph. ``gap`` is the FP32 logit difference between the last expert chosen
    and the first one left out, at the first router (user graph first) and the token where the choice differs; NaN
    if none does. ``narrowest`` is the smallest such difference of all the row's choices, ``usual_gap`` the median
    over all choices of all rows, ``routers`` their number.
    """

    error: Array
    flipped: Array
    of_user: Array
    gap: Array
    narrowest: Array
    usual_gap: float
    routers: int

    def __str__(self) -> str:
        """Return the findings as a few lines."""
        rows, flipped = len(self.error), self.flipped
        beyond = self.error > BEYOND
        gaps = self.gap[flipped]
        tie = f"median {np.median(gaps):.2g}, largest {gaps.max():.2g}" if gaps.size else "none differs"
        return "\n".join(
            (
                f"{rows:,} rows, {self.routers} routers; other experts than in FP32: {flipped.sum():,} rows "
                f"({flipped.mean():.1%}), {self.of_user.sum():,} of them already on the user side",
                f"max |probability difference|: {_largest(self.error[~flipped])} on rows with the same experts, "
                f"{_largest(self.error[flipped])} on rows with others",
                f"rows beyond {BEYOND:g}: {beyond.sum():,}, with other experts {(beyond & flipped).sum():,}",
                f"logit gap between the last expert chosen and the first left out: {self.usual_gap:.2g} in the "
                f"median of all choices; first difference in choice: {tie}",
            )
        )


def _largest(values: Array) -> str:
    return f"{values.max():.2g}" if values.size else "-"


@dataclass(frozen=True)
class _Choices:
    """One router: the experts chosen [T, rows, k] in rising order, and the FP32 logit gap [T, rows] behind them."""

    experts: Array
    gap: Array


@dataclass(frozen=True)
class _Pass:
    """One user and item graph run over all requests: logits by task, and the routers of each side by name."""

    logits: Mapping[str, Array]
    user: Mapping[str, _Choices]
    item: Mapping[str, _Choices]


def compare_routing(bundle: Path, requests: Path, progress: ProgressCallback = silent) -> Routing:
    """Run the bundle's engines and its FP32 graphs over the requests and compare what their routers choose.

    Raises:
        UgsepError: a tampered bundle, unusable requests, engines other than ONNX Runtime's, or no top-k router.
    """
    opened = Bundle.open(bundle)
    found = routing_of(bundle, opened.manifest, list(opened.read_requests([requests])), progress)
    if found is None:
        raise UgsepError(
            f"{bundle} has no top-k router, or its engines are not onnxruntime's and cannot be read; "
            "there is nothing to compare"
        )
    return found


def routing_of(
    bundle: Path, manifest: Manifest, requests: Sequence[Request], progress: ProgressCallback = silent
) -> Routing | None:
    """Compare the routers of a bundle's chosen engines with those of its FP32 graphs; None if it has none."""
    graphs = {side: onnx_file(bundle, side) for side in SIDES}
    chosen = {side: engine_for(manifest, side) for side in SIDES}
    if any(e.built.backend != "onnxruntime" for e in chosen.values()) or not any(map(_routers, graphs.values())):
        return None
    files = {side: bundle / engine.directory / f"{side}.onnx" for side, engine in chosen.items()}
    sessions = {side: engine.built.session for side, engine in chosen.items()}
    return compare_graphs(graphs, files, requests, sessions, progress)


def compare_graphs(
    reference: Mapping[Side, Path],
    served: Mapping[Side, Path],
    requests: Sequence[Request],
    sessions: Mapping[Side, Mapping[str, Any]] | None = None,
    progress: ProgressCallback = silent,
) -> Routing:
    """Compare the routers of two pairs of ONNX graphs, ``user`` and ``item``, whose tensors have the same names.

    Args:
        reference: the FP32 graphs by side.
        served: the graphs to compare.
        requests: what to run, all at once.
        sessions: pinned session settings of the served graphs by side.
        progress: called for both passes.

    """
    routers = {side: _routers(reference[side]) for side in SIDES}
    progress(Progress("routing", 0, 2, "FP32"))
    expected = _run(reference, {side: {} for side in SIDES}, routers, requests)
    progress(Progress("routing", 1, 2, "engines"))
    actual = _run(served, sessions or {side: {} for side in SIDES}, routers, requests)
    progress(Progress("routing", 2, 2))
    return _compare(expected, actual, np.repeat(np.arange(len(requests)), [r.candidates for r in requests]))


def _routers(path: Path) -> list[tuple[str, str]]:
    """Return (probabilities, chosen indices) of every top-k router of a graph, in topological order."""
    return [(node.input[0], node.output[1]) for node in read_graph(path).graph.node if node.op_type == "TopK"]


def _run(
    files: Mapping[Side, Path],
    sessions: Mapping[Side, Mapping[str, Any]],
    routers: Mapping[Side, list[tuple[str, str]]],
    requests: Sequence[Request],
) -> _Pass:
    users = {name: np.concatenate([r.user[name] for r in requests]) for name in requests[0].user}
    items = {name: np.concatenate([r.items[name] for r in requests]) for name in requests[0].items}
    index = np.repeat(np.arange(len(requests)), [r.candidates for r in requests])
    names = {side: [name for router in found for name in router] for side, found in routers.items()}
    state = read_onnxruntime(files["user"], sessions["user"], users, names["user"])
    out = read_onnxruntime(files["item"], sessions["item"], {**state, **items, USER_INDEX: index}, names["item"])
    tasks = [o.name for o in read_graph(files["item"]).graph.output]
    return _Pass(
        {task: out[task] for task in tasks},
        {chosen: _choices(state[p], state[chosen]) for p, chosen in routers["user"]},
        {chosen: _choices(out[p], out[chosen]) for p, chosen in routers["item"]},
    )


def _choices(probabilities: Array, chosen: Array) -> _Choices:
    k = chosen.shape[-1]
    ranked = -np.sort(-probabilities.astype(np.float64), axis=-1)
    if ranked.shape[-1] == k:
        return _Choices(np.sort(chosen, -1), np.full(chosen.shape[:-1], np.inf))
    smallest = np.finfo(np.float64).tiny  # a probability may have run out to zero
    gap = np.log(np.maximum(ranked[..., k - 1], smallest)) - np.log(np.maximum(ranked[..., k], smallest))
    return _Choices(np.sort(chosen, -1), gap)


def _compare(expected: _Pass, actual: _Pass, index: Array) -> Routing:
    rows = len(index)
    smallest = np.full(rows, np.inf)
    flipped, of_user, gap = np.zeros(rows, bool), np.zeros(rows, bool), np.full(rows, np.nan)
    every_gap = []
    for side in SIDES:
        for name, wanted in getattr(expected, side).items():
            differs = (wanted.experts != getattr(actual, side)[name].experts).any(-1)  # [T, rows of this side]
            # The narrowest of the tokens that differ in the first router that does.
            narrowest = np.where(differs, wanted.gap, np.inf).min(0)
            here = differs.any(0)
            every_gap.append(wanted.gap.ravel())
            least = wanted.gap.min(0)
            if side == "user":
                here, narrowest, least = here[index], narrowest[index], least[index]
                of_user |= here
            gap = np.where(here & ~flipped, narrowest, gap)
            flipped |= here
            smallest = np.minimum(smallest, least)
    error = np.max(
        [np.abs(probability(actual.logits[t]) - probability(v)) for t, v in expected.logits.items()], axis=0
    )
    routers = len(expected.user) + len(expected.item)
    return Routing(error, flipped, of_user, gap, smallest, float(np.median(np.concatenate(every_gap))), routers)

"""The cost of int8 per weight: the effect of each alone on the scores of held-out requests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from export.io import file_sha256
from graphs.base.config import parse
from graphs.base.errors import UgsepError
from graphs.base.finite import finite
from graphs.base.json_text import read_json
from graphs.base.progress import Progress, ProgressCallback, silent
from graphs.base.regular_file import is_regular_file
from quant.arrays import Array
from quant.calibration.statistics import Calibration, SideStatistics
from quant.graph.files import write_whole
from quant.graph.gemms import Weight, load_graph, quantizable
from quant.requests.hash import samples_sha256
from quant.requests.spec import Request
from quant.schemes.awq import AwqPlan, Scaling
from quant.schemes.bias import corrected, mean_shift
from quant.schemes.schemes import SchemeConfig, check_calibrated, scaling_plan, scheme_name
from quant.search.metrics import Effect, effect_of
from quant.search.scoring import OpenGraph, Scorer, open_scorer
from quant.weights import quantize_values

FORMAT = 3  # 2 ranked all rows together


@dataclass(frozen=True)
class SensitivityRow:
    """The effect on the scores if this weight alone is int8."""

    side: str
    weight: str
    shape: tuple[int, ...]
    scheme: str
    sqnr_db: float
    kendall_tau: float
    auc_change: float | None

    def to_json(self) -> dict[str, Any]:
        """Return the row as plain values; infinite SQNR becomes None."""
        return dict(finite(asdict(self)))


@dataclass(frozen=True)
class Candidates:
    """The quantizable weights of both graphs, and how to restore each from int8."""

    scorer: Scorer
    scheme: SchemeConfig
    block: int
    weights: tuple[tuple[str, Weight], ...]
    statistics: dict[str, SideStatistics]
    awq: dict[str, AwqPlan]

    def restored(self, side: str, weight: Weight) -> dict[str, Array]:
        """Return the weight as the scheme restores it, and its bias if the scheme corrects it."""
        seen = self.statistics[side].of(weight.name) if self.statistics else None
        scaling = self.awq[side].scalings.get(weight.name, Scaling())
        block = self.block if self.block and weight.shape[-2] % self.block == 0 else 0
        graph = self.graph(side)
        values = graph.weights[weight.name]
        bias = graph.biases.get(weight.name) if seen is not None and self.scheme.needs_calibration else None
        restored = np.asarray(quantize_values(self.scheme, values, seen, block, scaling, bias is not None)[1])
        found = {weight.name: restored}
        if bias is not None and seen is not None:
            found[bias] = corrected(graph.weights[bias], mean_shift(values, restored, seen))
        return found

    def graph(self, side: str) -> OpenGraph:
        """Return the open graph of a side."""
        return self.scorer.user if side == "user" else self.scorer.item


def open_candidates(
    user_onnx: Path,
    item_onnx: Path,
    requests: Iterable[Request],
    scheme: SchemeConfig,
    calibration: Calibration | None,
    block: int,
    threads: int,
) -> Candidates:
    """Load graphs, requests and statistics.

    Raises:
        UgsepError: a scheme without its calibration, a calibration of other graphs or shapes, no requests.
    """
    check_calibrated(scheme, calibration)
    paths = {"user": user_onnx, "item": item_onnx}
    statistics = {s: calibration.side(p) for s, p in paths.items()} if calibration is not None else {}
    scorer = open_scorer(user_onnx, item_onnx, requests, threads)
    weights: list[tuple[str, Weight]] = []
    awq: dict[str, AwqPlan] = {}
    for side, path in paths.items():
        model = load_graph(path)
        found = quantizable(model, path)
        weights += [(side, w) for w in found]
        if side in statistics:
            statistics[side].check_shapes({w.name: w.shape for w in found})
        values = (scorer.user if side == "user" else scorer.item).weights
        awq[side] = scaling_plan(scheme, model, found, statistics.get(side), values.__getitem__, block)
    return Candidates(scorer, scheme, block, tuple(weights), statistics, awq)


def sensitivity(
    user_onnx: Path,
    item_onnx: Path,
    requests: Iterable[Request],
    *,
    scheme: SchemeConfig,
    calibration: Calibration | None = None,
    block: int = 0,
    threads: int = 1,
    cache: Path | None = None,
    progress: ProgressCallback = silent,
) -> tuple[SensitivityRow, ...]:
    """Return one row per quantizable weight, the most harmful (lowest SQNR) first.

    Results are written to the file ``cache`` as they come, keyed by the hash of all their inputs (both graphs,
    requests and labels, calibration, scheme), so an interrupted run resumes and an unchanged one returns immediately.

    Raises:
        UgsepError: see :func:`open_candidates`; a file that is not a sensitivity cache.
    """
    kept = tuple(requests)
    candidates = open_candidates(user_onnx, item_onnx, kept, scheme, calibration, block, threads)
    base = _key(user_onnx, item_onnx, kept, scheme, calibration, block)
    known = _read_cache(cache)
    reference: dict[str, Array] | None = None
    rows = []
    for number, (side, weight) in enumerate(candidates.weights):
        progress(Progress("sensitivity", number, len(candidates.weights), f"{side}:{weight.name}"))
        key = f"{base}:{side}:{weight.name}"
        if key not in known:
            if reference is None:
                reference = candidates.scorer.score()
            scores = candidates.scorer.score(side, candidates.restored(side, weight))
            known[key] = asdict(effect_of(reference, scores, candidates.scorer.labels, candidates.scorer.sizes))
            _write_cache(cache, known)
        effect = parse(Effect, known[key], f"'{cache}': effects.{key}")
        rows.append(SensitivityRow(side, weight.name, weight.shape, scheme_name(scheme), **asdict(effect)))
    progress(Progress("sensitivity", len(rows), len(rows)))
    return tuple(sorted(rows, key=lambda r: (r.sqnr_db, r.side, r.weight)))


def _key(
    user_onnx: Path,
    item_onnx: Path,
    requests: tuple[Request, ...],
    scheme: SchemeConfig,
    calibration: Calibration | None,
    block: int,
) -> str:
    digest = hashlib.sha256(f"{FORMAT} {scheme!r} {block}".encode())
    for path in (user_onnx, item_onnx):
        digest.update(file_sha256(path).encode())
    digest.update(samples_sha256(requests).encode())
    for request in requests:
        for task in sorted(request.labels):
            digest.update(task.encode())
            digest.update(np.ascontiguousarray(request.labels[task]).data)
    digest.update((calibration.samples_sha256 if calibration is not None else "").encode())
    return digest.hexdigest()


def _read_cache(path: Path | None) -> dict[str, dict[str, Any]]:
    if path is None or not is_regular_file(path, "name another file with --cache"):
        return {}
    document = read_json(path.read_bytes(), f"'{path}'", "delete it or name another file")
    effects = document.get("effects") if isinstance(document, dict) else None
    if not isinstance(effects, dict):
        raise UgsepError(f"'{path}' is not a sensitivity cache; delete it or name another file")
    return effects


def _write_cache(path: Path | None, effects: dict[str, dict[str, Any]]) -> None:
    if path is None:
        return
    write_whole(path, json.dumps({"effects": effects}, indent=1, sort_keys=True))


def check_plot(path: Path) -> None:
    """Create the folder of a plot; call it before the work.

    Raises:
        UgsepError: the suffix is not an image format that matplotlib writes.
    """
    from matplotlib.backend_bases import FigureCanvasBase

    known = sorted(FigureCanvasBase.filetypes)
    if path.suffix[1:].lower() not in known:
        raise UgsepError(f"cannot draw '{path}'; end its name with one of {', '.join(known)}")
    path.parent.mkdir(parents=True, exist_ok=True)


def plot_sensitivity(rows: Iterable[SensitivityRow], path: Path) -> None:
    """Draw the noise of each weight alone as bars, the most harmful on top; the suffix selects the format.

    Raises:
        UgsepError: see :func:`check_plot`.
    """
    check_plot(path)
    from matplotlib.figure import Figure

    ranked = tuple(rows)
    noise = [-r.sqnr_db if np.isfinite(r.sqnr_db) else np.nan for r in ranked]
    figure = Figure(figsize=(9, 1 + 0.25 * len(ranked)), layout="constrained")
    axes = figure.subplots()
    low = np.nanmin(noise) - 3 if np.isfinite(noise).any() else -1.0
    axes.barh([f"{r.side}: {r.weight}" for r in ranked], np.array(noise) - low, left=low)
    axes.invert_yaxis()
    axes.set_xlabel("noise of the scores, dB below the signal (further right: more harm)")
    figure.savefig(path)

"""The proof of a bundle: parity, quality, invariance and latency of its engines against the FP32 model."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from engines.backends.contract import Array, Runner
from engines.bundle.bundle import onnx_file
from engines.bundle.manifest import Manifest, engine_for
from engines.compile.compile import EnginePlan, compile_engine, load_built
from engines.recipes.recipe import Recipe
from engines.serve.ranker import Ranker
from engines.verify import checks
from engines.verify.agreement import Agreement
from engines.verify.latency import RequestLatency, measure
from engines.verify.routing import routing_of
from engines.verify.weight_checks import int8_checks
from export.metadata import GraphSide
from graphs.base.errors import GateFailed
from graphs.base.progress import Progress, ProgressCallback, silent
from graphs.split.split import Subgraph
from quant.requests.readers import Request

SIDES: tuple[GraphSide, ...] = ("full", "user", "item")
LATENCY_RETRIES = 2
CHECKED_SIZES = ((1, 1), (2, 1), (257, 3))  # candidates, users


@dataclass(frozen=True)
class Proof:
    """What was found: parity by task, AUC by variant and task, latencies, targets, score errors by variant."""

    split: Mapping[str, Agreement]
    quant: Mapping[str, Agreement]
    auc: Mapping[str, Mapping[str, float]]
    latency: Sequence[RequestLatency]
    targets: Sequence[checks.Check]
    errors: Mapping[str, Array]

    @property
    def passed(self) -> bool:
        """Whether every target holds."""
        return all(t.passed for t in self.targets)


def prove(
    recipe: Recipe,
    manifest: Manifest,
    bundle: Path,
    requests: Sequence[Request],
    reference: Callable[[Runner], checks.Scores],
    limits: Mapping[int, float],
    *,
    check: Callable[[GraphSide, Runner], None] | None = None,
    progress: ProgressCallback = silent,
) -> Proof:
    """Prove the engines a bundle chose against the FP32 model.

    Args:
        recipe: gates, threads and request sizes.
        manifest: the bundle's manifest.
        bundle: its directory, with ``onnx/full.onnx``, ``user.onnx`` and ``item.onnx`` in FP32.
        requests: held-out requests; where they carry labels, AUC is a gate too.
        reference: returns the FP32 scores of the requests; it is handed the FP32 engine of the full graph.
        limits: FLOP limit of the speed-up for every request size to measure.
        check: called with every FP32 engine before it is used.
        progress: told about every step.

    Raises:
        UgsepError: an engine cannot be built or loaded here.
        GateFailed: ``check`` found a broken graph; targets that do not hold are returned, not raised.
    """
    ranker = Ranker.from_engines(bundle, manifest, engine_for(manifest, "user"), engine_for(manifest, "item"))
    # The FP32 engines are the baseline and the proof of the split; they are measured, not shipped.
    with tempfile.TemporaryDirectory(prefix="ugsep-reference-") as scratch:
        folder = Path(scratch)
        fp32 = {
            side: compile_engine(
                recipe,
                EnginePlan(side, "onnxruntime", "fp32"),
                onnx_file(bundle, side),
                folder,
                None,
                progress,
            )
            for side in SIDES
        }
        runners = {side: load_built(engine, folder) for side, engine in fp32.items()}
        for done, (side, runner) in enumerate(runners.items() if check is not None else (), start=1):
            assert check is not None
            check(side, runner)
            progress(Progress("check", done, len(SIDES), f"{side}.onnx against PyTorch at 1, 2, 257 rows"))
    plain = Ranker(runners["user"], runners["item"], fp32["user"], fp32["item"])
    truth = reference(runners["full"])
    scores = {
        "split": checks.engine_scores(plain, requests, "split scores", progress),
        "quantized": checks.engine_scores(ranker, requests, "quantized scores", progress),
    }
    parity = {variant: checks.parity(truth, actual) for variant, actual in scores.items()}
    auc = {variant: checks.task_auc(requests, s) for variant, s in {"fp32": truth, **scores}.items()}
    largest = max(requests, key=lambda r: r.candidates)
    routing = routing_of(bundle, manifest, requests, progress)
    targets = checks.parity_targets(
        recipe.gates,
        checks.split_errors(truth, scores["split"], routing),
        parity["quantized"],
        checks.check_invariance(ranker, largest),
    )
    targets += checks.routing_targets(recipe.gates, routing) if routing is not None else []
    targets += int8_checks(engine_for(manifest, side).built for side in ("user", "item"))
    targets += checks.auc_targets(recipe.gates, auc["fp32"], auc["quantized"])
    latency = measure(runners["full"], ranker, largest, limits, progress)
    # A busy neighbour only ever adds time, and unevenly: a bound that is really missed is missed again.
    for _ in range(LATENCY_RETRIES):
        if all(t.passed for t in checks.latency_targets(recipe.gates, latency[-1])):
            break
        latency = measure(runners["full"], ranker, largest, limits, progress)
    targets += checks.latency_targets(recipe.gates, latency[-1])
    errors = {variant: checks.score_errors(truth, actual) for variant, actual in scores.items()}
    runners["full"].close()
    plain.close()
    ranker.close()
    return Proof(parity["split"], parity["quantized"], auc, latency, targets, errors)


def check_export(
    side: GraphSide, half: Subgraph, runner: Runner, feeds: Callable[[int, int], Mapping[str, torch.Tensor]]
) -> None:
    """Run one exported FP32 graph at 1, 2 and 257 rows against PyTorch on fresh random rows.

    Args:
        side: which graph, for the message.
        half: the PyTorch graph it was exported from.
        runner: the engine built from the file.
        feeds: returns fresh inputs for (candidates, users).

    Raises:
        GateFailed: an output differs by more than FP32 rounding allows.
    """
    for candidates, users in CHECKED_SIZES:
        given = dict(feeds(candidates, users))
        got = runner.infer({k: v.numpy() for k, v in given.items()})
        for output, value in half(given).items():
            expected = value.numpy()
            # FP32 sums of a few thousand terms in another order: 1e-5 of the tensor's own scale.
            bound = 1e-5 * max(1.0, float(np.abs(expected).max()))
            worst = float(np.abs(got[output] - expected).max())
            if not worst <= bound:
                raise GateFailed(
                    f"onnx/{side}.onnx '{output}' at {candidates} rows: |difference| {worst:.3g} > {bound:.3g}"
                )


def full_scores(full: Runner, requests: Sequence[Request], progress: ProgressCallback = silent) -> checks.Scores:
    """Return the scores of the FP32 full engine, for bundles checked without their PyTorch model."""
    scores: checks.Scores = []
    for request in requests:
        users = {k: np.repeat(v, request.candidates, axis=0) for k, v in request.user.items()}
        scores.append(full.infer({**users, **request.items}))
    progress(Progress("reference scores", len(scores), len(requests)))
    return scores

"""Score requests with the PyTorch model, the engine of the whole model or a Ranker: one dict of [N] arrays each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from engines.backends.contract import Array, Runner
from engines.serve.ranker import Ranker
from graphs.base.progress import Progress, ProgressCallback, silent
from graphs.split.split import Subgraph
from quant.requests.spec import Request

Scores = list[dict[str, Array]]


def reference_scores(
    full: Subgraph, requests: Sequence[Request], threads: int, progress: ProgressCallback = silent
) -> Scores:
    """Return the FP32 logits of the whole PyTorch model for every request, one dict of [N] arrays each.

    Requests are joined to batches of about 4096 rows, which changes nothing because rows are independent.
    """
    torch.set_num_threads(threads)
    scores: Scores = []
    batch: list[Request] = []
    for request in requests:
        batch.append(request)
        if sum(r.candidates for r in batch) >= 4096:
            scores += _run_whole(full, batch)
            batch = []
            progress(Progress("reference scores", len(scores), len(requests)))
    if batch:
        scores += _run_whole(full, batch)
    progress(Progress("reference scores", len(scores), len(requests)))
    return scores


def _run_whole(full: Subgraph, batch: Sequence[Request]) -> Scores:
    columns: dict[str, list[Array]] = {name: [] for name in full.inputs}
    for request in batch:
        for name, value in request.user.items():
            columns[name].append(np.repeat(value, request.candidates, axis=0))
        for name, value in request.items.items():
            columns[name].append(value)
    out = full({name: torch.from_numpy(np.concatenate(parts)) for name, parts in columns.items()})
    bounds = np.cumsum([r.candidates for r in batch])[:-1]
    parts_by_task = {task: np.split(value.numpy(), bounds) for task, value in out.items()}
    return [{task: parts[i] for task, parts in parts_by_task.items()} for i in range(len(batch))]


def engine_scores(
    ranker: Ranker, requests: Sequence[Request], step: str, progress: ProgressCallback = silent
) -> Scores:
    """Return the logits a Ranker gives for every request."""
    scores: Scores = []
    for request in requests:
        scores.append(ranker.score(request.user, request.items))
        if len(scores) % 50 == 0 or len(scores) == len(requests):
            progress(Progress(step, len(scores), len(requests)))
    return scores


def full_engine_scores(full: Runner, requests: Sequence[Request], progress: ProgressCallback = silent) -> Scores:
    """Return the FP32 logits that the engine of the whole model gives for every request."""
    scores: Scores = []
    for request in requests:
        users = {k: np.repeat(v, request.candidates, axis=0) for k, v in request.user.items()}
        scores.append(full.infer({**users, **request.items}))
    progress(Progress("reference scores", len(scores), len(requests)))
    return scores


def score_errors(reference: Scores, actual: Scores) -> Array:
    """Return the score differences of all rows and tasks, for plots."""
    return np.concatenate([a[task] - r[task] for r, a in zip(reference, actual, strict=True) for task in r])

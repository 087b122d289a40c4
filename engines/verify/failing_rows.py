"""The rows with the largest error, as a request file to validate and bisect again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from engines.backends.contract import Array
from quant.requests.spec import REQUEST_ID, Request

ROWS = 64


def save_worst_rows(path: Path, requests: Sequence[Request], errors: Mapping[str, Array], rows: int = ROWS) -> Path:
    """Write the rows whose scores differ most from FP32, as a file of requests (npz, one row per candidate).

    Besides features and labels it holds, per row, ``candidate`` (its index in the request) and for every variant
    ``<variant>_error`` [rows, tasks], the score minus the FP32 score.

    Args:
        path: the file to write.
        requests: the requests that were scored, in order.
        errors: variant -> differences over all requests, within one by task, within a task by candidate, as
            ``engines.verify.scores.score_errors`` gives them.
        rows: how many rows to keep; rows of a request stay together, and in order.
    """
    by_row = {variant: _per_row(requests, values) for variant, values in errors.items()}
    # Not finite is worse than any number.
    size = np.max([np.nan_to_num(np.abs(v), nan=np.inf).max(axis=1) for v in by_row.values()], axis=0)
    kept = np.sort(np.argsort(-size, kind="stable")[:rows])
    owner = np.repeat(np.arange(len(requests)), [r.candidates for r in requests])[kept]
    index = np.concatenate([np.arange(r.candidates) for r in requests])[kept]
    chosen = [(requests[o], p) for o, p in zip(owner.tolist(), index.tolist(), strict=True)]
    columns: dict[str, Array] = {REQUEST_ID: np.array([r.request_id for r, _ in chosen], np.int64)}
    first = requests[0]
    columns |= {name: np.stack([r.user[name][0] for r, _ in chosen]) for name in first.user}
    columns |= {name: np.stack([r.items[name][p] for r, p in chosen]) for name in first.items}
    columns |= {name: np.stack([r.labels[name][p] for r, p in chosen]) for name in first.labels}
    columns["candidate"] = index
    columns |= {f"{variant}_error": v[kept] for variant, v in by_row.items()}
    with path.open("wb") as stream:  # np.savez would append .npz to any other name
        np.savez(stream, **columns)  # type: ignore[arg-type]  # the stub takes arrays for its flag allow_pickle
    return path


def _per_row(requests: Sequence[Request], errors: Array) -> Array:
    """Return the differences as [rows, tasks]."""
    tasks = errors.size // sum(r.candidates for r in requests)
    ends = np.cumsum([tasks * r.candidates for r in requests])[:-1]
    return np.concatenate([part.reshape(tasks, -1).T for part in np.split(errors, ends)])

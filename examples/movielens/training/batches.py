"""Read request files into tensors and batch them by whole requests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from graphs.base import config as config_file
from graphs.base.errors import UgsepError, first_line
from graphs.base.features import Feature


@dataclass(frozen=True)
class RequestRows:
    """All rows of one file: feature tensors [R, ...], labels float32 [R] per task, ``first`` int64 [Q + 1].

    Request r owns the rows ``first[r]`` to ``first[r + 1]``.
    """

    features: dict[str, Tensor]
    labels: dict[str, Tensor]
    first: NDArray[np.int64]

    @property
    def requests(self) -> int:
        """Number of requests Q."""
        return len(self.first) - 1

    def rows(self, requests: NDArray[np.int64]) -> Tensor:
        """Return the row numbers of the given requests, int64 [rows]."""
        sizes = self.first[requests + 1] - self.first[requests]
        offset = np.repeat(self.first[requests] - np.r_[0, np.cumsum(sizes)[:-1]], sizes)
        return torch.from_numpy(offset + np.arange(len(offset)))


def read_features(folder: Path) -> tuple[tuple[Feature, ...], tuple[str, ...]]:
    """Return the declared features and tasks of prepared data.

    Raises:
        UgsepError: ``features.json`` is missing or malformed.
    """
    path = folder / "features.json"
    try:
        declared = json.loads(path.read_text())
        rows, tasks = declared["features"], declared["tasks"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UgsepError(f"{path} is missing or malformed; run 'make data'") from error
    return tuple(config_file.parse(Feature, row, str(path)) for row in rows), tuple(tasks)


def read_rows(path: Path, features: tuple[Feature, ...], tasks: tuple[str, ...]) -> RequestRows:
    """Read one request file.

    Raises:
        UgsepError: the file is missing, unreadable or empty, or a column is missing or has the wrong width.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise UgsepError(f"cannot read {path} ({first_line(error)}); run 'make data'") from error
    for name in ("request_id", *(f.name for f in features), *tasks):
        if name not in table.column_names:
            raise UgsepError(f"{path}: column '{name}' is missing; run 'make data'")
    if table.num_rows == 0:
        raise UgsepError(f"{path} has no rows; run 'make data'")
    ids = table.column("request_id").to_numpy()
    first = np.r_[0, np.flatnonzero(ids[1:] != ids[:-1]) + 1, len(ids)].astype(np.int64)
    tensors = {f.name: _tensor(path, table, f) for f in features}
    labels = {task: torch.from_numpy(table.column(task).to_numpy().astype(np.float32)) for task in tasks}
    return RequestRows(tensors, labels, first)


def request_batches(rows: RequestRows, requests: NDArray[np.int64], at_most: int) -> Iterator[Tensor]:
    """Yield row numbers of whole consecutive requests, at most ``at_most`` rows unless one request is larger."""
    batch: list[int] = []
    size = 0
    for request in requests:
        more = int(rows.first[request + 1] - rows.first[request])
        if batch and size + more > at_most:
            yield rows.rows(np.array(batch))
            batch, size = [], 0
        batch.append(int(request))
        size += more
    if batch:
        yield rows.rows(np.array(batch))


def _tensor(path: Path, table: pa.Table, feature: Feature) -> Tensor:
    column = table.column(feature.name).combine_chunks()
    if feature.row_shape:
        if not pa.types.is_fixed_size_list(column.type) or column.type.list_size != feature.width:
            raise UgsepError(
                f"{path}: column '{feature.name}' is {column.type}, not lists of {feature.width}; run 'make data'"
            )
        column = column.flatten()
    kind = np.float32 if feature.kind == "dense" else np.int64
    values = column.to_numpy(zero_copy_only=False).astype(kind).reshape(-1, *feature.row_shape)
    return torch.from_numpy(values)

"""The hash that identifies a set of requests."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from quant.requests.spec import REQUEST_ID, Request


class SamplesHash:
    """Hash of a stream of requests: column names, dtypes and bytes, but not shard boundaries or paths."""

    def __init__(self) -> None:
        self._columns: dict[str, Any] = {}
        self.rows = 0
        self.requests = 0

    def update(self, request: Request) -> None:
        """Add one request."""
        self.rows += request.candidates
        self.requests += 1
        columns = {
            REQUEST_ID: np.array([request.request_id, request.candidates], np.int64),
            **{f"user/{n}": a for n, a in request.user.items()},
            **{f"item/{n}": a for n, a in request.items.items()},
        }
        for name, values in columns.items():
            if name not in self._columns:
                header = f"{name}:{values.dtype.name}:{list(values.shape[1:])}\n"
                self._columns[name] = hashlib.sha256(header.encode())
            self._columns[name].update(np.ascontiguousarray(values).data)

    def hexdigest(self) -> str:
        """Return the sha256 of everything added so far, independent of the order of the columns."""
        total = hashlib.sha256()
        for name in sorted(self._columns):
            total.update(f"{name}={self._columns[name].hexdigest()}\n".encode())
        return total.hexdigest()


def samples_sha256(requests: Iterable[Request]) -> str:
    """Return the hash of the requests (see :class:`SamplesHash`)."""
    samples = SamplesHash()
    for request in requests:
        samples.update(request)
    return samples.hexdigest()

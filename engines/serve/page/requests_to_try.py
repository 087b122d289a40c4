"""The requests that the page offers: examples from a folder, or the fixtures of the bundle."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from engines.backends.contract import Array
from engines.bundle.fixture_file import Fixture, Fixtures
from engines.bundle.fixtures import read_examples
from engines.serve.core.served_bundle import ServedBundle
from graphs.base.errors import UgsepError
from graphs.base.names import USER_INDEX

__all__ = ["Offer", "Offers", "infer_body", "listing"]

KEPT = 2  # bundles whose requests stay in memory: the current one and its predecessor

DATATYPES = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
}


@dataclass(frozen=True)
class Offer:
    """Requests that fit one bundle; ``source`` is ``examples`` or ``fixtures``, ``note`` tells a person which."""

    source: str
    note: str
    fixtures: Fixtures


class Offers:
    """Finds the requests to offer for a bundle, and keeps those of the last two; thread-safe."""

    def __init__(self, examples: Path | None) -> None:
        self._examples = examples
        self._found: OrderedDict[str, Offer] = OrderedDict()
        self._lock = threading.Lock()

    def check(self, served: ServedBundle) -> None:
        """Read the examples that were asked for, if any.

        Raises:
            UgsepError: they are missing or malformed, or do not fit the bundle.
        """
        if self._examples is not None:
            read_examples(self._examples, served.manifest)

    def of(self, served: ServedBundle) -> Offer:
        """Return the examples if they fit the bundle, else its fixtures."""
        with self._lock:
            if served.version not in self._found:
                self._found[served.version] = self._read(served)
                while len(self._found) > KEPT:
                    self._found.popitem(last=False)
            return self._found[served.version]

    def _read(self, served: ServedBundle) -> Offer:
        misfit = ""
        if self._examples is not None:
            try:
                found = read_examples(self._examples, served.manifest)
                return Offer(
                    "examples", f"{len(found.requests)} examples from the folder that the server was given.", found
                )
            except UgsepError as error:
                misfit = f"The examples do not fit version {served.version}: {error}. "
        return Offer("fixtures", f"{misfit}Requests that the build stored with their logits.", served.fixtures)


def listing(served: ServedBundle, offer: Offer) -> dict[str, Any]:
    """Return what the page lists: per request its label, candidates, labels and expected logits, but no features."""
    return {
        "source": offer.source,
        "note": offer.note,
        "version": served.version,
        "infer": f"v2/models/{quote(served.name, safe='')}/infer",
        "tolerances": dict(offer.fixtures.tolerances),
        "requests": [
            {
                "label": fixture.label or fixture.name,
                "users": fixture.users,
                "candidates": fixture.candidates,
                "items": item_names(fixture, offer.fixtures),
                "user_index": [] if fixture.user_index is None else fixture.user_index.tolist(),
                "labels": {task: values.tolist() for task, values in fixture.labels.items()},
                "expected": {task: values.tolist() for task, values in fixture.expected.items()},
                "body": f"examples/{index}.json",
            }
            for index, fixture in enumerate(offer.fixtures.requests)
        ],
    }


def item_names(fixture: Fixture, fixtures: Fixtures) -> list[str]:
    """Return a name per candidate: of its id if there are names, else the id itself, else its number."""
    ids = {name: values for name, values in fixture.items.items() if values.ndim == 1 and values.dtype.kind in "iu"}
    for name, known in fixtures.names.items():
        if name in ids:
            return [known.get(str(i), f"{name} {i}") for i in ids[name].tolist()]
    for name, values in ids.items():
        return [f"{name} {i}" for i in values.tolist()]
    return [f"candidate {row}" for row in range(fixture.candidates)]


def infer_body(fixture: Fixture) -> dict[str, Any]:
    """Return the request as a body of the Open Inference Protocol, with JSON tensors."""
    tensors: dict[str, Array] = {**fixture.user, **fixture.items}
    if fixture.user_index is not None:
        tensors[USER_INDEX] = fixture.user_index
    return {"inputs": [tensor(name, value) for name, value in tensors.items()]}


def tensor(name: str, value: Array) -> dict[str, Any]:
    """Return an array as a JSON tensor; FP32 values are written so that they are read back bit for bit.

    Raises:
        UgsepError: a dtype that the protocol cannot carry.
    """
    datatype = DATATYPES.get(value.dtype.name)
    if datatype is None:
        raise UgsepError(f"feature '{name}' has dtype {value.dtype}; the protocol carries {', '.join(DATATYPES)}")
    return {
        "name": name,
        "shape": list(value.shape),
        "datatype": datatype,
        "data": np.ascontiguousarray(value).reshape(-1).tolist(),
    }

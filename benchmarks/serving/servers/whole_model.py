"""The whole model behind our own server: the same protocols, queue and workers around another runtime.

The ranker is ours too, with two other runners: the 'user engine' hands the user's features on as the state, and the
'item engine' repeats them for every candidate and runs the whole model.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from engines.backends.built_engine import BuiltEngine, TensorSpec
from engines.backends.contract import Array
from engines.bench.baselines import BASELINES
from engines.bench.baselines.contract import BaselineSource, Bind
from engines.bundle.bundle import Bundle
from engines.bundle.manifest import Manifest, engine_for
from engines.serve.ranker import Ranker
from graphs.base.errors import UgsepError
from graphs.base.names import USER_INDEX

VERSION = "whole"
_PREFIX = "state_"
_ROUNDS = 30
#: PyTorch is no server's runtime here, and takes a second to import.
RUNTIMES = tuple(name for name in BASELINES if name not in ("pytorch", "torch-compile"))


class SameFeatures:
    """A user engine whose state is the user's features."""

    def infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Return the features under the names of the state."""
        return {_PREFIX + name: value for name, value in feeds.items()}

    def close(self) -> None:
        """Do nothing: nothing is held."""


class WholeModel:
    """An item engine that runs the whole model on the user's features, repeated for every candidate."""

    def __init__(self, bind: Bind) -> None:
        self._bind = bind

    def infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Return the logits of one user's candidates."""
        items = {n: v for n, v in feeds.items() if not n.startswith(_PREFIX) and n != USER_INDEX}
        rows = len(next(iter(items.values())))
        user = {
            n.removeprefix(_PREFIX): np.repeat(v, rows, axis=0) for n, v in feeds.items() if n.startswith(_PREFIX)
        }
        return self._bind({**items, **user})()

    def close(self) -> None:
        """Do nothing: the runtime is freed with this object."""


def whole_ranker(manifest: Manifest, bind: Bind) -> Ranker:
    """Return our ranker around a loaded whole model; it takes one user per call."""
    user, item = engine_for(manifest, "user").built, engine_for(manifest, "item").built
    states = tuple(TensorSpec(_PREFIX + spec.name, spec.dtype, (1, *spec.shape[1:])) for spec in user.inputs)
    theirs = {*(spec.name for spec in user.outputs), USER_INDEX}
    features = tuple(spec for spec in item.inputs if spec.name not in theirs)
    plain_user: BuiltEngine = dataclasses.replace(user, outputs=states)
    plain_item: BuiltEngine = dataclasses.replace(item, inputs=(*features, *states))
    return Ranker(SameFeatures(), WholeModel(bind), plain_user, plain_item, 0, manifest.vocabularies)


def load_whole(bundle: Path, runtime: str, folder: Path) -> Bind:
    """Load the bundle's whole model in a runtime, on one thread; ``folder`` keeps what it writes.

    Raises:
        UgsepError: this machine cannot run it.
    """
    opened = Bundle.open(bundle)
    folder.mkdir(parents=True, exist_ok=True)
    source = BaselineSource(opened.onnx("full"), folder, opened.recipe)
    return BASELINES[runtime].load(source, 1)


def fastest_runtime(bundle: Path, folder: Path, candidates: int) -> tuple[str, dict[str, float]]:
    """Return the runtime with the lowest p50 for a request, and the milliseconds of each that runs here.

    Raises:
        UgsepError: none runs here.
    """
    opened = Bundle.open(bundle)
    request = next(iter(opened.synthetic_requests(1, candidates)))
    rankers = {}
    for name in RUNTIMES:
        try:
            rankers[name] = whole_ranker(opened.manifest, load_whole(bundle, name, folder))
            rankers[name].score(request.user, request.items)
        except UgsepError:
            rankers.pop(name, None)
    if not rankers:
        raise UgsepError("no runtime of the whole model runs on this machine; pip install 'ugsep[cpu]'")
    samples: dict[str, list[float]] = {name: [] for name in rankers}
    for _ in range(_ROUNDS):  # in turn, so that drift of the machine affects all alike
        for name, ranker in rankers.items():
            ranker.score(request.user, request.items)
            began = time.perf_counter()
            ranker.score(request.user, request.items)
            samples[name].append((time.perf_counter() - began) * 1e3)
    medians = {name: float(np.median(values)) for name, values in samples.items()}
    return min(medians, key=lambda name: medians[name]), medians

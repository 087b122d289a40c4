"""The variants of an engine: the graphs that accompany the main one, and a runner that picks one per request.

``<side>.onnx`` takes any request. If the build measured that they pay, there are also ``item.one_user.onnx``, for
requests of one user, and ``<side>.few_rows.onnx``, for at most the rows of the first profile in the manifest.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from engines.backends.built_engine import BuiltEngine, TensorSpec
from engines.backends.contract import Array, Runner
from engines.backends.engine_spec import Profile, Rows
from graphs.base.errors import UgsepError
from graphs.base.names import USER_INDEX, USER_ROWS, GraphSide

ONE_USER, FEW_ROWS, ANY = "one_user", "few_rows", "any"


def variant_file(side: GraphSide, variant: str = ANY) -> str:
    """Return the file name of a variant's graph."""
    return f"{side}.onnx" if variant == ANY else f"{side}.{variant}.onnx"


def row_axis(side: GraphSide) -> str:
    """Return the name of the axis whose length is a request's size."""
    return "users" if side == "user" else "candidates"


def with_one_user_variant(built: BuiltEngine) -> BuiltEngine:
    """Return the engine with ``user_index`` declared to take one row as well."""
    return _with_index(built, lambda spec: (dataclasses.replace(spec, shape=(USER_ROWS,)),))


def has_one_user_variant(built: BuiltEngine) -> bool:
    """Tell whether an engine has a variant for requests of one user."""
    return any(spec.name == USER_INDEX and spec.shape == (USER_ROWS,) for spec in built.inputs)


def gathering_io(built: BuiltEngine) -> BuiltEngine:
    """Return the engine with the inputs of the graph for several users."""
    return _with_index(built, lambda spec: (dataclasses.replace(spec, shape=("candidates",)),))


def broadcasting_io(built: BuiltEngine) -> BuiltEngine:
    """Return the engine with the inputs of the graph for one user: no ``user_index``, one row of state."""
    one = tuple(
        dataclasses.replace(s, shape=(1, *s.shape[1:])) if s.shape[:1] == ("users",) else s for s in built.inputs
    )
    return _with_index(dataclasses.replace(built, inputs=one), lambda _: ())


def _with_index(built: BuiltEngine, change: Callable[[TensorSpec], tuple[TensorSpec, ...]]) -> BuiltEngine:
    inputs = (change(spec) if spec.name == USER_INDEX else (spec,) for spec in built.inputs)
    return dataclasses.replace(built, inputs=tuple(spec for kept in inputs for spec in kept))


def cut_profiles(side: GraphSide, profiles: Sequence[Profile], most: int) -> tuple[Profile, ...]:
    """Return the profiles with one first that covers the rows of the few-rows variant, up to ``most``."""
    field = row_axis(side)
    first = dataclasses.replace(profiles[0], **{field: Rows(1, 1, most)})
    cut = []
    for profile in profiles:
        rows: Rows = getattr(profile, field)
        if rows.max > most:
            least = max(rows.min, most + 1)
            cut.append(dataclasses.replace(profile, **{field: Rows(least, max(rows.opt, least), rows.max)}))
    return (first, *cut)


class VariantRunner:
    """Runs each request on the variant that suits it; all but the ``main`` one are loaded when first needed.

    Each variant holds its weights in memory, so a program pays only for the request sizes that it gets. Variants of a
    bundle that was replaced after the first was loaded are refused, not mixed with it; ``preload`` avoids that.
    """

    def __init__(
        self, variants: Mapping[str, Callable[[], Runner]], main: str, built: BuiltEngine, files: Sequence[Path]
    ) -> None:
        self._load = dict(variants)
        self._files = {file: _identity(file) for file in files}
        self._loaded = {main: variants[main]()}
        self._broadcasts = ONE_USER in variants
        self._few_up_to = getattr(built.profiles[0], row_axis(built.side)).max if FEW_ROWS in variants else 0
        self._state = tuple(s.name for s in built.inputs if s.shape[:1] == ("users",))
        rows = [s.name for s in built.inputs if s.shape[:1] == (row_axis(built.side),) and s.name != USER_INDEX]
        self._counted = rows[0] if rows else USER_INDEX
        self._lock = threading.Lock()
        self._closed = False

    @property
    def loaded(self) -> frozenset[str]:
        """The variants that are in memory."""
        return frozenset(self._loaded)

    def infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once; raises UgsepError for wrong feeds, an id outside its table, or after ``close``."""
        one_user = self._broadcasts and self._is_one_user(feeds)
        variant = ONE_USER if one_user else ANY
        if self._few_up_to and (one_user or not self._broadcasts):
            counted = feeds.get(self._counted)
            if counted is not None and counted.ndim > 0 and counted.shape[0] <= self._few_up_to:
                variant = FEW_ROWS
        if one_user:
            feeds = {name: value for name, value in feeds.items() if name != USER_INDEX}
        return (self._loaded.get(variant) or self._loading(variant)).infer(feeds)

    def preload(self) -> None:
        """Load the variants that no request needed yet, so that the folder may be replaced afterwards.

        Raises:
            UgsepError: a variant cannot be loaded, the folder was replaced already, or the runner is closed.
        """
        for variant in self._load:
            self._loading(variant)

    def close(self) -> None:
        """Release what was loaded."""
        with self._lock:
            self._closed = True
            for runner in self._loaded.values():
                runner.close()

    def _is_one_user(self, feeds: Mapping[str, Array]) -> bool:
        index = feeds.get(USER_INDEX)
        one_row = index is not None and index.shape == (1,) and index.dtype == np.int64 and index[0] == 0
        return one_row and all(name in feeds and feeds[name].shape[:1] == (1,) for name in self._state)

    def _loading(self, variant: str) -> Runner:
        with self._lock:
            if self._closed:
                raise UgsepError("the engine is closed; load it again")
            if variant not in self._loaded:
                if any(_identity(file) != seen for file, seen in self._files.items()):
                    raise UgsepError(
                        f"{next(iter(self._files)).parent}: replaced since it was loaded, and this request needs a "
                        "graph that was not read yet; load the bundle again"
                    )
                self._loaded[variant] = self._load[variant]()
            return self._loaded[variant]


def _identity(file: Path) -> tuple[int, ...]:
    """Return what changes when a file is replaced; an empty tuple if it does not exist."""
    try:
        found = file.stat()
    except FileNotFoundError:
        return ()
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)

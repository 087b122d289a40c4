"""What a loaded bundle takes and returns, in the protocol's terms."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from engines.backends.built_engine import TensorSpec
from engines.bundle.manifest import engine_for
from engines.serve.core.served_bundle import ServedBundle
from engines.serve.errors import UnknownModel
from graphs.base.errors import UgsepError, nearest
from graphs.base.names import USER_INDEX

__all__ = ["Input", "Signature", "Signatures", "datatype_of", "feature_dtype"]

Role = Literal["user", "item", "index"]

#: Fixed-size datatypes by their name in the protocol; BYTES is not one, because no engine takes strings.
DTYPES: dict[str, np.dtype[np.generic]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Input:
    """One input tensor: rows of users, of candidates, or the candidates' rows of users (``user_index``).

    ``row_shape`` is the shape without the rows, ``row_elements`` its product, ``most_rows`` the limit of the engines'
    profiles, 0 for none.
    """

    name: str
    role: Role
    dtype: np.dtype[np.generic]
    datatype: str
    row_shape: tuple[int, ...]
    row_elements: int
    most_rows: int

    def check(self, datatype: str, shape: Sequence[int]) -> int:
        """Return the number of elements of a tensor with this header; nothing is allocated.

        Raises:
            UgsepError: a wrong datatype or shape, no rows, or more rows than the engines accept.
        """
        if datatype != self.datatype:
            raise UgsepError(
                f"input '{self.name}' has datatype {_quoted(datatype)}; send {self.datatype}{_why(datatype)}"
            )
        if len(shape) != 1 + len(self.row_shape) or tuple(shape[1:]) != self.row_shape:
            wanted = ", ".join(map(str, ("rows", *self.row_shape)))
            raise UgsepError(f"input '{self.name}' has shape {_shape(shape)}; send [{wanted}]")
        rows = shape[0]
        if rows < 1:
            raise UgsepError(f"input '{self.name}' has shape {_shape(shape)}, so no rows; send at least one")
        if self.most_rows and rows > self.most_rows:
            raise UgsepError(f"input '{self.name}' has {rows} rows; the engines accept at most {self.most_rows}")
        return rows * self.row_elements


class Signature:
    """The inputs and outputs of a bundle's two models: the ranking model and its user graph."""

    def __init__(self, served: ServedBundle) -> None:
        self.served = served
        ranker = served.ranker
        inputs = [
            *(_feature("user", spec, ranker.max_users) for spec in ranker.user_inputs),
            *(_feature("item", spec, ranker.max_candidates) for spec in ranker.item_inputs),
        ]
        if ranker.takes_index:
            index = np.dtype(np.int64)
            inputs.append(Input(USER_INDEX, "index", index, datatype_of(index), (), 1, ranker.max_candidates))
        self.inputs: Mapping[str, Input] = {i.name: i for i in inputs}
        if len(self.inputs) != len(inputs):  # the splitter refuses such models, an edited manifest might not
            names = [i.name for i in inputs]
            twice = next(name for name in names if names.count(name) > 1)
            raise UgsepError(f"input '{twice}' is on both sides of the bundle; name it once and build again")
        self.outputs = tuple(ranker.outputs)

    @cached_property
    def states(self) -> tuple[TensorSpec, ...]:
        """The user graph's outputs."""
        manifest = self.served.manifest
        chosen = engine_for(manifest, "user")
        loaded = self.served.ranker.user_inputs
        others = (e for e in manifest.engines if e.built.side == "user" and e.built.inputs == loaded)
        return (chosen if chosen.built.inputs == loaded else next(others, chosen)).built.outputs

    def is_user_model(self, model: str, version: str) -> bool:
        """Return whether a call is for the user graph instead of the ranking model.

        Raises:
            UnknownModel: neither has this name, or the bundle has another version.
        """
        served = self.served
        if model not in (served.name, served.user_model):
            raise UnknownModel(
                f"unknown model {_quoted(model)}{nearest(model[:200], (served.name, served.user_model))}"
            )
        if version and version != served.version:
            raise UnknownModel(
                f"model '{model}' has no version {_quoted(version)}; version {served.version} serves, "
                "and a call that names none gets it"
            )
        return model == served.user_model

    def input(self, name: str, users_only: bool) -> Input:
        """Return an input by name.

        Raises:
            UgsepError: no such input, or an item feature for the user graph.
        """
        found = self.inputs.get(name)
        if found is None or (users_only and found.role != "user"):
            raise self._unknown_input(name, users_only)
        return found

    def output(self, name: str, users_only: bool) -> str:
        """Return an output's name after checking it.

        Raises:
            UgsepError: no such output.
        """
        known = tuple(s.name for s in self.states) if users_only else self.outputs
        if name not in known:
            raise UgsepError(f"unknown output {_quoted(name)}{nearest(name[:200], known)}")
        return name

    def _unknown_input(self, name: str, users_only: bool) -> UgsepError:
        model = self.served.user_model if users_only else self.served.name
        if name in self.inputs:
            return UgsepError(f"input '{name}' belongs to candidates; model '{model}' takes user features only")
        known = [i.name for i in self.inputs.values() if not users_only or i.role == "user"]
        return UgsepError(f"model '{model}' has no input {_quoted(name)}{nearest(name[:200], known)}")


class Signatures:
    """The signatures of the bundles that serve now; made once for each."""

    def __init__(self) -> None:
        self._made: tuple[Signature, ...] = ()

    def of(self, served: ServedBundle) -> Signature:
        """Return the signature of a loaded bundle.

        Raises:
            UgsepError: the bundle's inputs cannot be told apart by name.
        """
        for made in self._made:
            if made.served is served:
                return made
        fresh = Signature(served)
        self._made = (fresh, *self._made[:1])  # the current bundle and the one it replaced, never more
        return fresh


def datatype_of(dtype: np.dtype[np.generic]) -> str:
    """Return the protocol's name of a NumPy dtype.

    Raises:
        KeyError: the protocol has no such datatype.
    """
    return _NAMES[dtype]


def feature_dtype(name: str) -> np.dtype[np.generic]:
    """Return the dtype in which callers send a feature of an engine's input dtype.

    Features are float32 even if the engine computes in float16, so that a caller needs no change when the precision
    of a bundle does.
    """
    return np.dtype(np.float32 if name == "float16" else name)


def _feature(role: Literal["user", "item"], spec: TensorSpec, most_rows: int) -> Input:
    dtype = feature_dtype(spec.dtype)
    row_shape = tuple(int(size) for size in spec.shape[1:])
    return Input(spec.name, role, dtype, datatype_of(dtype), row_shape, math.prod(row_shape), most_rows)


def _why(datatype: str) -> str:
    if datatype == "BYTES":
        return "; strings are not features, encode them as ids"
    return "" if datatype in DTYPES else f"{nearest(datatype[:20], DTYPES)}"


def _quoted(text: str) -> str:
    return f"'{text[:80]}'" if len(text) <= 80 else f"'{text[:80]}...'"


def _shape(shape: Iterable[int]) -> str:
    sizes = [str(size) if abs(size) < 1 << 64 else "huge" for size in shape]  # a huge integer has no short text
    return f"[{', '.join(sizes[:8])}{', ...' if len(sizes) > 8 else ''}]"

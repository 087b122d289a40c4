"""Jagged tensors that a model makes in ``forward``, as padded rows: of other jagged tensors, or of plain tensors."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from graphs.base.errors import UgsepError
from graphs.trace.jagged.padding import refuse_other_rows
from graphs.trace.jagged.pieces import KINDS, Pieces
from graphs.trace.jagged.provenance import Provenance
from graphs.trace.jagged.stand_ins import PaddedKeys, PaddedRows

_MODULE = "torchrec.sparse.jagged_tensor"
_REMEDY = "make the KeyedJaggedTensor an input of the model, where each feature has a side"
_JAGGED_TENSOR = "JaggedTensor"


def is_imported() -> bool:
    """Return whether TorchRec is, without which no model makes its tensors."""
    return _MODULE in sys.modules


def keyed_jagged_tensor() -> Any:
    """Return TorchRec's class."""
    return importlib.import_module(_MODULE).KeyedJaggedTensor


@contextmanager
def constructed_by(make: Callable[[Mapping[str, Any], Callable[[], Any]], Any]) -> Iterator[None]:
    """Call ``make(arguments, construct)`` wherever a JaggedTensor or KeyedJaggedTensor is made, for its result.

    Only a KeyedJaggedTensor has ``keys`` among the arguments. One thread at a time: TorchRec's classes are changed
    meanwhile.
    """
    torchrec = importlib.import_module(_MODULE)
    meta = torchrec.JaggedTensorMeta
    before = meta.__dict__.get("__call__")

    def made(cls: Any, *args: Any, **kwargs: Any) -> Any:
        def construct() -> Any:
            return super(meta, cls).__call__(*args, **kwargs)

        if cls not in (torchrec.KeyedJaggedTensor, torchrec.JaggedTensor):
            return construct()
        return make(inspect.signature(cls.__init__).bind(None, *args, **kwargs).arguments, construct)

    meta.__call__ = made
    try:
        yield
    finally:
        if before is None:
            del meta.__call__
        else:
            meta.__call__ = before


@contextmanager
def assembling() -> Iterator[None]:
    """Make stand-ins wherever TorchRec's jagged tensors are made inside; one thread at a time."""
    keyed_class = keyed_jagged_tensor()

    def make(given: Mapping[str, Any], construct: Callable[[], Any]) -> Any:
        if given.get("stride_per_key_per_rank") is not None or given.get("inverse_indices") is not None:
            refuse_other_rows()
        keyed = "keys" in given
        rows = _rows(provenance, list(given["keys"]) if keyed else [_JAGGED_TENSOR], *(given.get(k) for k in KINDS))
        return PaddedKeys(rows) if keyed else rows[_JAGGED_TENSOR]

    # These read what stand-ins have not, or the number of rows as a constant.
    ours = {"concat": staticmethod(_concatenated), "from_jt_dict": staticmethod(_of_dict)}
    before = {name: keyed_class.__dict__[name] for name in ours}
    with Provenance() as provenance, constructed_by(make):
        try:
            for name, method in ours.items():
                setattr(keyed_class, name, method)
            yield
        finally:
            for name, method in before.items():
                setattr(keyed_class, name, method)


def _concatenated(kjt_list: Sequence[Any]) -> PaddedKeys:
    """Return the features of all; those of lookups outside are not read."""
    features: dict[str, PaddedRows] = {}
    for keyed in kjt_list:
        _check_stand_in(keyed)
        _check_names([*features, *keyed.features])
        features |= keyed.features
    return PaddedKeys(features)


def _of_dict(jt_dict: Mapping[str, Any]) -> PaddedKeys:
    """Return jagged tensors as features."""
    for rows in jt_dict.values():
        _check_stand_in(rows)
    return PaddedKeys({name: rows.renamed(name) for name, rows in jt_dict.items()})


def _check_stand_in(value: Any) -> None:
    if not isinstance(value, (PaddedKeys, PaddedRows)):
        raise UgsepError(f"the model reads a {type(value).__name__} that is not made in forward; {_REMEDY}")


def _check_names(names: Sequence[str]) -> None:
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice is not None:
        raise UgsepError(f"the model makes a KeyedJaggedTensor with two features '{twice}'; give each its own name")


def _rows(
    provenance: Provenance, names: list[str], values: Any, weights: Any, lengths: Any, offsets: Any
) -> dict[str, PaddedRows]:
    """Return padded rows by feature, of what a KeyedJaggedTensor is made of.

    Raises:
        UgsepError: it is not known where the rows of a feature begin.
    """
    _check_names(names)
    if lengths is None:
        lengths = provenance.lengths_of_offsets(offsets) if isinstance(offsets, Tensor) else offsets
    if lengths is None:
        raise UgsepError(
            "the model makes a KeyedJaggedTensor of offsets whose lengths are not known; give it lengths, or "
            f"{_REMEDY}"
        )
    # Weights that a mask picked are values to it.
    picked = isinstance(weights, Pieces) and weights.kind == "values"
    parts = zip(
        names,
        _blocks(provenance, names, values, ("values",)),
        [None] * len(names) if weights is None else _blocks(provenance, names, weights, ("values", "weights")),
        _lengths(provenance, names, lengths),
        strict=True,
    )
    return {name: _one(name, v, w, n, picked) for name, v, w, n in parts}


def _blocks(provenance: Provenance, names: list[str], whole: Any, kinds: tuple[str, ...]) -> list[Any]:
    """Return, for each feature, the padded rows or the tensor whose values are its part of a whole."""
    if isinstance(whole, Pieces) and whole.kind not in kinds:
        raise UgsepError(f"the model makes a KeyedJaggedTensor with {whole.kind} as {kinds[-1]}; give it {kinds[-1]}")
    given = whole.blocks if isinstance(whole, Pieces) else (whole,)
    blocks = [p for b in given for p in (provenance.pieces(b) if isinstance(b, Tensor) else (b,))]
    if len(blocks) == 1 and len(names) > 1 and isinstance(whole, Tensor):
        return list(whole.reshape(len(names), -1).unbind(0))
    if len(blocks) != len(names):
        raise UgsepError(
            f"the model makes a KeyedJaggedTensor of {len(names)} features of {len(blocks)} tensors; join one tensor "
            f"per feature with torch.cat, or {_REMEDY}"
        )
    return blocks


def _lengths(provenance: Provenance, names: list[str], whole: Any) -> list[Any]:
    """Return, for each feature, the rows or the tensor of its lengths, or the number that all are."""
    constant = whole if isinstance(whole, int) else None
    if isinstance(whole, Tensor):
        constant = provenance.constant(whole)
    if constant is not None:
        return [constant] * len(names)
    found = _blocks(provenance, names, whole, ("offsets", "lengths"))
    numbers = [provenance.constant(block) if isinstance(block, Tensor) else None for block in found]
    return [block if number is None else number for block, number in zip(found, numbers, strict=True)]


def _one(name: str, values: Tensor | PaddedRows, weights: Any, lengths: Any, picked: bool) -> PaddedRows:
    """Return the rows of one feature; ``picked``: of rows of weights, these are the values."""
    if isinstance(lengths, PaddedRows) and lengths.single:
        lengths = 1
    if isinstance(values, Tensor):
        return _plain(name, values, weights, lengths)
    if isinstance(lengths, PaddedRows):
        same = lengths.same_rows(values)
    elif isinstance(lengths, int):
        same = values.single and lengths == 1
    else:
        same = not values.single and _equal(lengths, values)
    if not same:
        raise UgsepError(
            f"the model makes feature '{name}' of the values of '{values.name}' and other lengths; use those of "
            "these values"
        )
    made: PaddedRows = replace(values.renamed(name), weighted=weights is not None)
    if weights is None or weights is values:
        return made
    shares = weights if isinstance(weights, Tensor) and values.single else None
    if isinstance(weights, PaddedRows) and weights.same_rows(values):
        shares = weights.rows if picked else weights.row_weights
    if shares is None:
        raise UgsepError(
            f"the model makes feature '{name}' of the values of '{values.name}' and the weights of other places; use "
            "weights of the same rows"
        )
    made = replace(made, own={**made.own, f"{made.base}.weights": shares})
    return made


def _plain(name: str, values: Tensor, weights: Any, lengths: Any) -> PaddedRows:
    """Return the rows of a tensor that has the same number of ids for every row."""
    if not isinstance(lengths, int) or lengths < 1 or isinstance(weights, PaddedRows):
        raise UgsepError(
            f"the model makes feature '{name}' of a tensor in which it is not known where rows begin; use "
            f"JaggedTensor.from_dense_lengths, torch.ones as the lengths of one id per row, or {_REMEDY}"
        )
    if lengths == 1:
        return PaddedRows.of(name, values, weights=weights)
    rows = values.reshape(-1, lengths, *values.shape[1:])
    counts = torch.full_like(rows.flatten(1)[:, 0], lengths, dtype=torch.int64)
    return PaddedRows.of(name, rows, counts, None if weights is None else weights.reshape(-1, lengths))


def _equal(lengths: Tensor, values: PaddedRows) -> bool:
    """Return whether values have these lengths: the same tensor, or, where a model is not traced, equal numbers."""
    if lengths is values.counts or isinstance(lengths, FakeTensor):
        return True
    return torch.equal(lengths.long(), values.filled().sum(1))

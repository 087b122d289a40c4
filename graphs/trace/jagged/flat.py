"""A TorchRec model as a model of plain tensors: its KeyedJaggedTensors become padded inputs, or looked up embeddings.

An exact rewriting: tables are shared, not copied, and the scores are compared on random jagged features.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from graphs.base.errors import UgsepError
from graphs.trace.call import call_of, unwrapped
from graphs.trace.jagged.assembled import is_imported
from graphs.trace.jagged.forwards import PaddedCall, Recorded
from graphs.trace.jagged.layout import layouts_of
from graphs.trace.jagged.of_inputs import made_of_inputs
from graphs.trace.jagged.options import JaggedOptions
from graphs.trace.jagged.outside import outside_lookups
from graphs.trace.jagged.padding import check_whole
from graphs.trace.jagged.parts import collections_of, is_keyed_jagged, with_padded_parts
from graphs.trace.jagged.same_scores import check_equal, check_same_scores
from graphs.trace.trace import Example

__all__ = ["FlatModel", "flat_model"]


@dataclass(frozen=True)
class FlatModel:
    """A model of plain tensors; ``features`` lists the inputs that each jagged feature, or argument, became."""

    module: nn.Module
    example: Example
    features: Mapping[str, tuple[str, ...]]

    def inputs_of(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return names with each jagged feature replaced by its inputs; others as they are."""
        return tuple(dict.fromkeys(part for name in names for part in self.features.get(name, (name,))))


def flat_model(module: nn.Module, example: Example, options: JaggedOptions) -> FlatModel:
    """Return a model whose inputs are tensors; one that neither takes nor makes jagged tensors as it is.

    A jagged feature ``f`` becomes ``f.values [N, L]`` and ``f.lengths [N]``, with ``f.weights [N, L]`` if they are
    used, or ``f [N]`` if every row has one id. With lookups outside it becomes ``f [N, width]``, pooled, and
    ``f.vectors [N, L, width]`` with ``f.lengths [N]`` of an EmbeddingCollection; ``f@table`` if several tables have
    the feature. The module takes a dict of those that the model reads, and of its other inputs.

    Raises:
        UgsepError: options that do not fit the model, a use of jagged values that padded ones do not allow, or scores
            that differ from the model's on random features.
    """
    args, kwargs = ((), dict(example)) if isinstance(example, Mapping) else (tuple(example), {})
    leaves = pytree.tree_leaves((args, kwargs), is_leaf=is_keyed_jagged)
    jagged = [leaf for leaf in leaves if is_keyed_jagged(leaf)]
    for keyed in jagged:
        check_whole(keyed)
    as_it_is = FlatModel(module, example, {})
    if not jagged and not is_imported():
        options.check(())
        return as_it_is
    # A tensor in place of each, so that each has the name that a tensor there would have.
    marks = {id(keyed): torch.zeros(keyed.stride()) for keyed in jagged}
    marked = pytree.tree_map(lambda leaf: marks.get(id(leaf), leaf), (args, kwargs), is_leaf=is_keyed_jagged)
    try:
        module = unwrapped(module)
        call = call_of(module, *marked)
    except UgsepError:
        if jagged:
            raise
        options.check(())
        return as_it_is  # a trace says the same
    pairs = list(zip(call.names, call.tensors, strict=True))
    named: dict[str, Any] = {n: next((k for k in jagged if marks[id(k)] is t), t) for n, t in pairs}
    made = made_of_inputs(module, args, kwargs, named)
    parts = {name: (one.argument, kind) for one in made or () for kind, name in one.inputs.items()}
    named = {n: t for n, t in named.items() if n not in parts} | {one.argument: one.keyed for one in made or ()}
    options.check(feature for keyed in named.values() if is_keyed_jagged(keyed) for feature in keyed.keys())
    if not jagged and made is None:
        return as_it_is
    others = {n: t for n, t in named.items() if not is_keyed_jagged(t)}
    layouts = layouts_of({n: k for n, k in named.items() if n not in others}, others, options)
    padded_call = PaddedCall(call, layouts, parts)
    given = dict(others)
    for name, layout in layouts.items():
        given |= layout.inputs(named[name])
    padded = with_padded_parts(module, None)
    check_same_scores(module, padded, padded_call, named)
    if options.outside:
        return _outside(module, padded, padded_call, given)
    read = Recorded(given)
    padded_call.run(padded, read, {})
    kept = {n: t for n, t in given.items() if n in read.read or n in others}
    return FlatModel(padded_call.flat(padded, frozenset()), {"inputs": kept}, _by_feature(padded_call, kept, {}))


def _outside(module: nn.Module, padded: nn.Module, call: PaddedCall, given: Mapping[str, Tensor]) -> FlatModel:
    """Return the model with the results of its lookups as inputs."""
    before, found = call.looked_up(padded, given)
    lookups = outside_lookups(collections_of(padded), found, given)
    bare = with_padded_parts(module, lookups.names)
    read = Recorded(lookups.other_inputs)
    after = call.run(bare, read, lookups.vectors)
    check_equal(before, after, "looked up outside, the embeddings give other scores; look them up inside")
    kept = {n: t for n, t in lookups.other_inputs.items() if n in read.read or n in call.call.names}
    example = {"inputs": {**kept, **lookups.vectors}}
    features = _by_feature(call, kept, lookups.of_base)
    return FlatModel(call.flat(bare, frozenset(lookups.vectors)), example, features)


def _by_feature(
    call: PaddedCall, inputs: Mapping[str, Tensor], vectors: Mapping[str, tuple[str, ...]]
) -> dict[str, tuple[str, ...]]:
    """Return the inputs of every jagged feature and of every argument that holds some."""
    found: dict[str, tuple[str, ...]] = {}
    for argument, layout in call.layouts.items():
        for feature in layout.bases:
            names = (*(n for n in layout.inputs_of(feature) if n in inputs), *vectors.get(layout.bases[feature], ()))
            for key in (feature, argument):
                found[key] = (*found.get(key, ()), *names)
    return found

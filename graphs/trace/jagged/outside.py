"""Lookups outside: which inputs hold the results, and which remain of the ids' own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from graphs.base.errors import UgsepError
from graphs.trace.jagged.forwards import Found
from graphs.trace.jagged.lookups import Collection, PaddedEmbeddings
from graphs.trace.jagged.parts import Outside


@dataclass(frozen=True)
class OutsideLookups:
    """The inputs of a model whose embeddings are looked up outside.

    ``names`` has the input of every lookup of every collection, ``vectors`` those inputs, ``of_base`` their names
    by the feature's in a ``KeyedLayout``; ``other_inputs`` are the rest, without the ids that are looked up.
    """

    names: Outside
    vectors: Mapping[str, Tensor]
    of_base: Mapping[str, tuple[str, ...]]
    other_inputs: Mapping[str, Tensor]


def outside_lookups(
    collections: Mapping[str, Collection], found: Mapping[str, Found], inputs: Mapping[str, Tensor]
) -> OutsideLookups:
    """Return the inputs in place of the lookups that gave ``found`` on ``inputs``.

    Raises:
        UgsepError: the model looks up nothing, or features that are no input.
    """
    lookups = [(part, lookup) for part in collections.values() if part.where in found for lookup in part.lookups]
    if not lookups:
        raise UgsepError("the model looks up no embeddings; remove --embeddings outside")
    bases = [found[part.where].bases[lookup.feature] for part, lookup in lookups]
    for base, (part, lookup) in zip(bases, lookups, strict=True):
        if not base:
            raise UgsepError(
                f"submodule '{part.where}' looks up '{lookup.feature}', which the model makes of tensors; look it up "
                "inside, or make the KeyedJaggedTensor an input of the model"
            )
    ids = {f"{base}{end}" for base in bases for end in ("", ".values", ".weights")}  # sequences keep their lengths
    others = {n: t for n, t in inputs.items() if n not in ids}
    shorts = [
        f"{base}{lookup.name.removeprefix(lookup.feature)}" for base, (_, lookup) in zip(bases, lookups, strict=True)
    ]
    names: Outside = {}
    vectors: dict[str, Tensor] = {}
    of_base: dict[str, tuple[str, ...]] = {}
    for base, short, (part, lookup) in zip(bases, shorts, lookups, strict=True):
        unique = shorts.count(short) == 1 and short not in others
        name = short if unique else f"{part.where}.{lookup.name}"
        if isinstance(part, PaddedEmbeddings):
            name += ".vectors"
        names.setdefault(part.where, {})[lookup.name] = name
        vectors[name] = found[part.where].vectors[lookup.name]
        of_base[base] = (*of_base.get(base, ()), name)
    return OutsideLookups(names, vectors, of_base, others)

"""Which inputs of a flat model hold the features of one KeyedJaggedTensor."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from graphs.trace.jagged.options import JaggedOptions
from graphs.trace.jagged.padding import pad
from graphs.trace.jagged.stand_ins import PaddedKeys, PaddedRows

_PARTS = ("", ".values", ".lengths", ".weights")


@dataclass(frozen=True)
class KeyedLayout:
    """The features of one argument: ``bases`` are the names of their inputs, without ``.values`` and the like.

    Features in ``max_lengths`` are padded to that many ids, others have one id per row.
    """

    bases: Mapping[str, str]
    max_lengths: Mapping[str, int]

    def inputs(self, keyed: Any) -> dict[str, Tensor]:
        """Return the padded inputs of a KeyedJaggedTensor; raises as ``pad``."""
        by_feature = pad(keyed, self.max_lengths)
        names = {f"{f}{part}": f"{base}{part}" for f, base in self.bases.items() for part in _PARTS}
        return {names[name]: value for name, value in by_feature.items()}

    def stand_in(self, inputs: Mapping[str, Tensor], vectors: Mapping[str, Tensor]) -> PaddedKeys:
        """Return what the model is given in place of the KeyedJaggedTensor."""
        return PaddedKeys(
            {f: PaddedRows(f, inputs, base, f not in self.max_lengths, vectors) for f, base in self.bases.items()}
        )

    def inputs_of(self, feature: str) -> list[str]:
        """Return all names that inputs of a feature may have."""
        return [f"{self.bases[feature]}{part}" for part in _PARTS]


def layouts_of(jagged: Mapping[str, Any], others: Collection[str], options: JaggedOptions) -> dict[str, KeyedLayout]:
    """Return the layout of each KeyedJaggedTensor, by the name of its argument.

    Inputs are named after the feature, preceded by the argument if another one's, or an input, has its name.
    """
    features = [feature for keyed in jagged.values() for feature in keyed.keys()]
    declared = dict(options.max_lengths)
    made = {}
    for argument, keyed in jagged.items():
        bases, max_lengths = {}, {}
        for name, feature in keyed.to_dict().items():
            unique = features.count(name) == 1 and not any(f"{name}{part}" in others for part in _PARTS)
            bases[name] = name if unique else f"{argument}.{name}"
            if name not in options.single:
                longest = int(feature.lengths().max()) if len(feature.lengths()) else 1
                max_lengths[name] = declared.get(name, max(1, longest))
        made[argument] = KeyedLayout(bases, max_lengths)
    return made

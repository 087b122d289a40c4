"""Jagged features as padded tensors: the inputs of a flat model, from a TorchRec KeyedJaggedTensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from graphs.base.errors import UgsepError

__all__ = ["pad", "padded"]


def pad(features: Any, max_lengths: Mapping[str, int]) -> dict[str, Tensor]:
    """Return the inputs that a flat model takes for a KeyedJaggedTensor of N rows.

    Per feature ``f`` of ``max_lengths``: ``f.values [N, L]``, zeros after the row's ids, ``f.lengths [N]``, and, if
    there are weights, ``f.weights [N, L]``. Other features have one id in each row: ``f [N]`` and ``f.weights [N]``.

    Raises:
        UgsepError: a row with more ids than declared, or with none or several where one is declared, or batches of
            different sizes.
    """
    if features.variable_stride_per_key() or features.inverse_indices_or_none() is not None:
        raise UgsepError("a KeyedJaggedTensor has another number of rows per feature; give every feature all rows")
    inputs: dict[str, Tensor] = {}
    for name, feature in features.to_dict().items():
        lengths, weights = feature.lengths(), feature.weights_or_none()
        if name in max_lengths:
            longest, most = int(lengths.max()) if len(lengths) else 0, max_lengths[name]
            if longest > most:
                raise UgsepError(
                    f"a row of feature '{name}' has {longest} ids, but {most} at most are declared; write "
                    f"--max-lengths {name}={longest}, or give the model its first {most}"
                )
            inputs[f"{name}.values"] = padded(feature.values(), lengths, most)
            inputs[f"{name}.lengths"] = lengths
            if weights is not None:
                inputs[f"{name}.weights"] = padded(weights, lengths, most)
        else:
            if not bool((lengths == 1).all()):
                raise UgsepError(f"a row of feature '{name}' has not exactly one id; declare --max-lengths {name}=K")
            inputs[name] = feature.values()
            if weights is not None:
                inputs[f"{name}.weights"] = weights
    return inputs


def padded(values: Tensor, lengths: Tensor, most: int) -> Tensor:
    """Return jagged values, one row after the other, as ``[N, most]`` with zeros after each row's ``lengths``."""
    filled = torch.arange(most, device=lengths.device) < lengths.unsqueeze(1)
    rows = values.new_zeros((len(lengths), most))
    rows[filled] = values
    return rows

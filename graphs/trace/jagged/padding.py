"""Jagged features as padded tensors: the inputs of a flat model, from a TorchRec KeyedJaggedTensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor

from graphs.base.errors import UgsepError

__all__ = ["pad", "padded"]


def pad(features: Any, max_lengths: Mapping[str, int]) -> dict[str, Tensor]:
    """Return the inputs that a flat model takes for a KeyedJaggedTensor of N rows.

    Per feature ``f`` of ``max_lengths``: ``f.values [N, L]``, zeros after the row's ids, ``f.lengths [N]``, and, if
    there are weights, ``f.weights [N, L]``. Other features have one id in each row: ``f [N]`` and ``f.weights [N]``.

    Raises:
        UgsepError: a row with more ids than declared, or with none or several where one is declared, lengths that are
            not those of the ids, or batches of different sizes.
    """
    check_whole(features)
    inputs: dict[str, Tensor] = {}
    for name, feature in features.to_dict().items():
        lengths, weights = feature.lengths(), feature.weights_or_none()
        longest = int(lengths.max()) if len(lengths) else 0
        if name in max_lengths:
            most = max_lengths[name]
            if longest > most:
                raise UgsepError(
                    f"a row of feature '{name}' has {longest} ids, but {most} at most are declared; write "
                    f"--max-lengths {name}={longest}, or give the model its first {most}"
                )
            made = {".values": padded(feature.values(), lengths, most), ".lengths": lengths}
            if weights is not None:
                made[".weights"] = padded(weights, lengths, most)
        else:
            if not bool((lengths == 1).all()):
                raise UgsepError(
                    f"a row of feature '{name}' has not exactly one id; declare --max-lengths "
                    f"{name}={max(1, longest)} instead of --single"
                )
            made = {"": feature.values()} if weights is None else {"": feature.values(), ".weights": weights}
        for end, tensor in made.items():
            if f"{name}{end}" in inputs:
                raise UgsepError(f"two features have an input '{name}{end}'; rename feature '{name}'")
            inputs[f"{name}{end}"] = tensor
    return inputs


def refuse_other_rows() -> NoReturn:
    """Raise that features have batches of their own, as after deduplication."""
    raise UgsepError("a KeyedJaggedTensor has another number of rows per feature; give every feature all rows")


def check_whole(features: Any) -> None:
    """Check a KeyedJaggedTensor, which TorchRec itself does not.

    Raises:
        UgsepError: its features have batches of their own or one name, its lengths are negative, too few or not those
            of its ids, or weights are missing.
    """
    if features.variable_stride_per_key() or features.inverse_indices_or_none() is not None:
        refuse_other_rows()
    keys, lengths, ids = features.keys(), features.lengths(), features.values()
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise UgsepError(f"a KeyedJaggedTensor has feature '{twice}' twice; give each feature its own name")
    if len(lengths) and int(lengths.min()) < 0:
        raise UgsepError(
            f"a KeyedJaggedTensor has a row of {int(lengths.min())} ids; give lengths of 0 or more, and offsets that "
            "do not decrease"
        )
    rows, total = features.stride(), int(lengths.sum())
    if len(lengths) != len(keys) * rows:
        raise UgsepError(
            f"a KeyedJaggedTensor of {len(keys)} features and {rows} rows has {len(lengths)} lengths; give it "
            f"{len(keys) * rows}, all rows of the first feature, then of the second"
        )
    if total != len(ids):
        raise UgsepError(
            f"a KeyedJaggedTensor has {len(ids)} ids and lengths of {total}; give it lengths that add up to its ids"
        )
    weights = features.weights_or_none()
    if weights is not None and len(weights) != len(ids):
        raise UgsepError(
            f"a KeyedJaggedTensor has {len(weights)} weights for {len(ids)} ids; give each id its weight"
        )


def padded(values: Tensor, lengths: Tensor, most: int) -> Tensor:
    """Return jagged values, one row after the other, as ``[N, most]`` with zeros after each row's ``lengths``."""
    filled = torch.arange(most, device=lengths.device) < lengths.unsqueeze(1)
    rows = values.new_zeros((len(lengths), most))
    rows[filled] = values
    return rows

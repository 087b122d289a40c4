"""What a model is given in place of TorchRec's jagged tensors: the same methods, on padded tensors."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.nn import functional

from graphs.base.errors import UgsepError


class _NotPadded(UgsepError, AttributeError):
    """A method of a jagged tensor that a padded one has not; also an AttributeError, which ``hasattr`` expects."""


def _refuse(feature: str, what: str) -> NoReturn:
    raise _NotPadded(
        f"the model reads {what} of {feature}, whose rows have no fixed places there; read to_padded_dense(K), or "
        "declare features of one id per row with --single"
    )


class PaddedRows:
    """Stands in for a JaggedTensor.

    ``rows [N, L, ...]`` are its values, of which the first ``counts [N]`` of each row exist; without ``counts`` every
    row has one, and ``rows`` is ``[N, ...]``. ``row_weights`` has the shape ``[N, L]`` or ``[N]``. All three are keys
    of ``inputs``, where they are looked up when they are needed.
    """

    def __init__(
        self, name: str, inputs: Mapping[str, Tensor], rows: str, counts: str | None, row_weights: str | None = None
    ) -> None:
        self.name = name
        self._inputs = inputs
        self._keys = (rows, counts, row_weights)

    @property
    def rows(self) -> Tensor:
        """The values, padded."""
        if self._keys[0] not in self._inputs:
            raise UgsepError(
                f"the model reads the ids of '{self.name}', whose embeddings are looked up outside; look them up "
                "inside, or remove what reads the ids"
            )
        return self._inputs[self._keys[0]]

    @property
    def counts(self) -> Tensor | None:
        """The number of values of each row; None if it is always one."""
        return None if self._keys[1] is None else self._inputs[self._keys[1]]

    @property
    def row_weights(self) -> Tensor | None:
        """The weights, padded; None if there are none."""
        return None if self._keys[2] is None else self._inputs[self._keys[2]]

    def filled(self) -> Tensor:
        """Return which places hold values, bool [N, L]; only if there are counts."""
        assert self.counts is not None
        places = torch.arange(self.rows.shape[1], device=self.rows.device)
        return places < self.counts.unsqueeze(1)

    def values(self) -> Tensor:
        """Return the values, of a feature with one per row: [N, ...]."""
        return self.rows if self.counts is None else _refuse(f"'{self.name}'", "the jagged values")

    def weights(self) -> Tensor:
        """Return the weights, of a feature with one value per row: [N]."""
        if self.counts is not None or self.row_weights is None:
            _refuse(f"'{self.name}'", "the jagged weights")
        return self.row_weights

    def lengths(self) -> Tensor:
        """Return the number of values of each row, [N]."""
        if self.counts is not None:
            return self.counts
        first = self.rows if self.rows.dim() == 1 else self.rows.flatten(1)[:, 0]
        return torch.ones_like(first, dtype=torch.int64)

    def to_padded_dense(self, desired_length: int | None = None, padding_value: float = 0.0) -> Tensor:
        """Return the values as [N, desired_length, ...], by default as long as declared."""
        if self.counts is None:
            rows, filled = self.rows.unsqueeze(1), None
        else:
            rows, filled = self.rows, self.filled().reshape(*self.rows.shape[:2], *[1] * (self.rows.dim() - 2))
        if filled is not None:
            rows = torch.where(filled, rows, torch.full((), padding_value, dtype=rows.dtype, device=rows.device))
        missing = 0 if desired_length is None else desired_length - rows.shape[1]
        if missing > 0:
            return functional.pad(rows, [0, 0] * (rows.dim() - 2) + [0, missing], value=padding_value)
        return rows[:, :desired_length] if missing < 0 else rows

    def __getattr__(self, name: str) -> Any:
        _refuse(f"'{self.__dict__.get('name', '')}'", f"{name}()")


@dataclass(frozen=True)
class PaddedKeys:
    """Stands in for a KeyedJaggedTensor: its ``features`` are read from the ``inputs`` of a flat model on demand.

    ``features`` maps a feature to the name of its inputs, ``single`` says which have one id per row. ``vectors`` has
    the results of lookups outside, by the names that the stand-ins for collections know.
    """

    inputs: Mapping[str, Tensor]
    features: Mapping[str, str]
    single: frozenset[str]
    vectors: Mapping[str, Tensor]

    def __getitem__(self, feature: str) -> PaddedRows:
        """Return a feature's ids."""
        base = self.features[feature]
        weights = f"{base}.weights" if f"{base}.weights" in self.inputs else None
        if feature in self.single:
            return PaddedRows(feature, self.inputs, base, None, weights)
        return PaddedRows(feature, self.inputs, f"{base}.values", f"{base}.lengths", weights)

    def keys(self) -> list[str]:
        """Return the names of the features."""
        return list(self.features)

    def to_dict(self) -> dict[str, PaddedRows]:
        """Return the ids of every feature."""
        return {name: self[name] for name in self.features}

    def split(self, segments: list[int]) -> list[PaddedKeys]:
        """Return consecutive groups of ``segments[i]`` features."""
        names, start, parts = self.keys(), 0, []
        for size in segments:
            chosen = {n: self.features[n] for n in names[start : start + size]}
            parts.append(replace(self, features=chosen))
            start += size
        return parts

    def permute(self, indices: list[int], indices_tensor: Tensor | None = None) -> PaddedKeys:
        """Return the features at these positions."""
        names = self.keys()
        return replace(self, features={names[i]: self.features[names[i]] for i in indices})

    def to(self, device: torch.device, non_blocking: bool = False) -> PaddedKeys:
        """Return the features: they are where the model is."""
        return self

    def __getattr__(self, name: str) -> Any:
        _refuse("a KeyedJaggedTensor", f"{name}()")


class PooledEmbeddings:
    """Stands in for a KeyedTensor: ``parts [N, width]`` by key, side by side in ``values()``.

    Keys are read without the detour by all values, so that what is the user's stays apart.
    """

    def __init__(self, parts: Mapping[str, Tensor]) -> None:
        self.parts = dict(parts)

    def keys(self) -> list[str]:
        """Return the keys."""
        return list(self.parts)

    def values(self) -> Tensor:
        """Return all embeddings, [N, sum of widths]."""
        return torch.cat(list(self.parts.values()), 1)

    def __getitem__(self, key: str) -> Tensor:
        """Return the embeddings of one key, [N, width]."""
        return self.parts[key]

    def to_dict(self) -> dict[str, Tensor]:
        """Return the embeddings by key."""
        return dict(self.parts)

    def key_dim(self) -> int:
        """Return the axis of the keys in ``values()``."""
        return 1

    def length_per_key(self) -> list[int]:
        """Return the widths."""
        return [part.shape[1] for part in self.parts.values()]

    def offset_per_key(self) -> list[int]:
        """Return where each key begins in ``values()``, and its end."""
        return [0, *itertools.accumulate(self.length_per_key())]

    def device(self) -> torch.device:
        """Return where the embeddings are."""
        return next(iter(self.parts.values())).device

    def to(self, device: torch.device, non_blocking: bool = False) -> PooledEmbeddings:
        """Return the embeddings: they are where the model is."""
        return self

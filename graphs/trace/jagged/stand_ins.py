"""What a model is given in place of TorchRec's jagged tensors: the same methods, on padded tensors."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from graphs.base.errors import UgsepError
from graphs.trace.jagged.pieces import Pieces, refuse


@dataclass(frozen=True, eq=False)
class PaddedRows:
    """Stands in for a JaggedTensor.

    ``rows [N, L, ...]`` are its values, of which the first ``counts [N]`` of each row exist; without ``counts``, if
    ``single``, every row has one, and ``rows`` is ``[N, ...]``. ``row_weights`` has the shape ``[N, L]`` or ``[N]``.
    They are looked up when they are needed: in ``own``, and then in the ``inputs`` of a flat model, under ``base``
    and an ending. ``vectors`` has the results of lookups outside, by the names that the stand-ins for collections
    know. A ``mask`` [N, L] among ``own`` says which values exist if these are not the first. ``origin`` are the rows
    of which these were made, value by value. If not ``weighted``, the weights do not count.
    """

    name: str
    inputs: Mapping[str, Tensor]
    base: str
    single: bool
    vectors: Mapping[str, Tensor] = field(default_factory=dict)
    own: Mapping[str, Tensor] = field(default_factory=dict)
    origin: PaddedRows | None = None
    weighted: bool = True

    @classmethod
    def of(
        cls,
        name: str,
        rows: Tensor,
        counts: Tensor | None = None,
        weights: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> PaddedRows:
        """Return rows that the model computed, which are no input: ``base`` is empty."""
        parts = {"" if counts is None else ".values": rows, ".lengths": counts, ".weights": weights, "mask": mask}
        own = {key: part for key, part in parts.items() if part is not None}
        return cls(name, {}, "", counts is None, own=own)

    def _key(self) -> str:
        return self.base if self.single else f"{self.base}.values"

    def _tensor(self, key: str) -> Tensor:
        return self.own[key] if key in self.own else self.inputs[key]

    @property
    def rows(self) -> Tensor:
        """The values, padded."""
        if self._key() not in self.own and self._key() not in self.inputs:
            raise UgsepError(
                f"the model reads the ids of '{self.name}', whose embeddings are looked up outside; look them up "
                "inside, or remove what reads the ids"
            )
        return self._tensor(self._key())

    @property
    def counts(self) -> Tensor | None:
        """The number of values of each row; None if it is always one."""
        return None if self.single else self._tensor(f"{self.base}.lengths")

    @property
    def has_weights(self) -> bool:
        """Whether there are weights."""
        key = f"{self.base}.weights"
        return self.weighted and (key in self.own or key in self.inputs)

    @property
    def row_weights(self) -> Tensor | None:
        """The weights, padded; None if there are none."""
        return self._tensor(f"{self.base}.weights") if self.has_weights else None

    def filled(self) -> Tensor:
        """Return which places hold values, bool [N, L]; only if there are counts."""
        if "mask" in self.own:
            return self.own["mask"]
        assert self.counts is not None
        places = torch.arange(self.rows.shape[1], device=self.rows.device)
        return places < self.counts.unsqueeze(1)

    def same_rows(self, other: PaddedRows) -> bool:
        """Return whether both have the values of the same places."""
        return (self.origin or self) is (other.origin or other)

    def renamed(self, name: str) -> PaddedRows:
        """Return the rows under another name."""
        made: PaddedRows = replace(self, name=name, origin=self.origin or self)
        return made

    def mapped(self, kind: str, function: Callable[[Tensor], Tensor]) -> PaddedRows:
        """Return the rows with a function applied to each of the ``values`` or ``weights``."""
        before = self.row_weights if kind == "weights" else self.rows
        if before is None:
            refuse(f"'{self.name}'", "the missing weights")
        after = function(before)
        # Zeros in padded places: what the function makes of theirs may be no valid id.
        if not self.single:
            after = torch.where(_like(self.filled(), after), after, torch.zeros_like(after))
        key = f"{self.base}.weights" if kind == "weights" else self._key()
        return replace(self, own={**self.own, key: after}, origin=self.origin or self)

    def values(self) -> Any:
        """Return the values, [N, ...], of a feature with one per row; of others, only jagged tensors can be made."""
        return self.rows if self.single else Pieces("values", [self])

    def weights(self) -> Any:
        """Return the weights, [N], of a feature with one per row; of others, only jagged tensors can be made."""
        if not self.has_weights:
            refuse(f"'{self.name}'", "the missing weights")
        return self.row_weights if self.single else Pieces("weights", [self])

    def weights_or_none(self) -> Any:
        """Return the weights as ``weights`` does, or None if there are none."""
        return self.weights() if self.has_weights else None

    def lengths(self) -> Tensor:
        """Return the number of values of each row, [N]."""
        if self.counts is not None:
            return self.counts
        first = self.rows if self.rows.dim() == 1 else self.rows.flatten(1)[:, 0]
        return torch.ones_like(first, dtype=torch.int64)

    def lengths_or_none(self) -> Tensor:
        """Return the number of values of each row, [N]."""
        return self.lengths()

    def to_padded_dense(self, desired_length: int | None = None, padding_value: float = 0.0) -> Tensor:
        """Return the values as [N, desired_length, ...], by default as long as declared."""
        return self._dense(self.rows, desired_length, padding_value)

    def to_padded_dense_weights(self, desired_length: int | None = None, padding_value: float = 0.0) -> Tensor | None:
        """Return the weights as [N, desired_length], by default as long as declared; None if there are none."""
        weights = self.row_weights
        return None if weights is None else self._dense(weights, desired_length, padding_value)

    def _dense(self, rows: Tensor, desired_length: int | None, padding_value: float) -> Tensor:
        if "mask" in self.own:
            raise UgsepError(
                f"the model reads to_padded_dense of '{self.name}', made with a mask that may have gaps; make it "
                "with JaggedTensor.from_dense_lengths"
            )
        if self.single:
            rows = rows.unsqueeze(1)
        else:
            padding = torch.full((), padding_value, dtype=rows.dtype, device=rows.device)
            rows = torch.where(_like(self.filled(), rows), rows, padding)
        missing = 0 if desired_length is None else desired_length - rows.shape[1]
        if missing > 0:
            return functional.pad(rows, [0, 0] * (rows.dim() - 2) + [0, missing], value=padding_value)
        return rows[:, :desired_length] if missing < 0 else rows

    def device(self) -> torch.device:
        """Return where the values are."""
        return self.rows.device

    def to(self, device: torch.device, non_blocking: bool = False) -> PaddedRows:
        """Return the rows: they are where the model is."""
        return self

    def __getattr__(self, name: str) -> Any:
        refuse(f"'{self.__dict__.get('name', '')}'", f"{name}()")


def _like(filled: Tensor, rows: Tensor) -> Tensor:
    """Return ``filled [N, L]`` with the axes of ``rows [N, L, ...]``."""
    return filled.reshape(*filled.shape, *[1] * (rows.dim() - 2))


@dataclass(frozen=True, eq=False)
class PaddedKeys:
    """Stands in for a KeyedJaggedTensor: rows by feature."""

    features: Mapping[str, PaddedRows]

    def __getitem__(self, feature: str) -> PaddedRows:
        """Return a feature's ids."""
        return self.features[feature]

    def keys(self) -> list[str]:
        """Return the names of the features."""
        return list(self.features)

    def to_dict(self) -> dict[str, PaddedRows]:
        """Return the ids of every feature."""
        return dict(self.features)

    def values(self) -> Pieces:
        """Return all values, of which only a jagged tensor can be made."""
        return Pieces("values", list(self.features.values()))

    def weights(self) -> Pieces:
        """Return all weights, of which only a jagged tensor can be made."""
        if self.weights_or_none() is None:
            refuse("a KeyedJaggedTensor", "the missing weights")
        return Pieces("weights", list(self.features.values()))

    def weights_or_none(self) -> Pieces | None:
        """Return all weights, or None if there are none."""
        given = all(rows.has_weights for rows in self.features.values())
        return Pieces("weights", list(self.features.values())) if given else None

    def lengths(self) -> Pieces:
        """Return all lengths, of which only a jagged tensor can be made."""
        return Pieces("lengths", list(self.features.values()))

    def offsets(self) -> Pieces:
        """Return all offsets, of which only a jagged tensor can be made."""
        return Pieces("offsets", list(self.features.values()))

    def stride(self) -> int:
        """Return the number of rows."""
        return next(iter(self.features.values())).rows.shape[0]

    def sync(self) -> PaddedKeys:
        """Return the features: nothing is computed ahead of them."""
        return self

    def split(self, segments: list[int]) -> list[PaddedKeys]:
        """Return consecutive groups of ``segments[i]`` features."""
        names, start, parts = self.keys(), 0, []
        for size in segments:
            parts.append(PaddedKeys({n: self.features[n] for n in names[start : start + size]}))
            start += size
        return parts

    def permute(self, indices: list[int], indices_tensor: Tensor | None = None) -> PaddedKeys:
        """Return the features at these positions."""
        names = self.keys()
        return PaddedKeys({names[i]: self.features[names[i]] for i in indices})

    def to(self, device: torch.device, non_blocking: bool = False) -> PaddedKeys:
        """Return the features: they are where the model is."""
        return self

    def __getattr__(self, name: str) -> Any:
        refuse("a KeyedJaggedTensor", f"{name}()")


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

"""The inputs of a ranking model: named features, each with a side, a kind and a shape."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from graphs.base.errors import UgsepError
from graphs.base.limits import MAX_SIZE, MAX_VOCAB, check_module_name, check_name
from graphs.base.names import Side

Kind = Literal["id", "dense", "sequence"]
MAX_GROUP = 128


@dataclass(frozen=True)
class Feature:
    """One model input; batch first.

    ``id``: int64 [N] in [0, vocab). ``dense``: float32 [N, width]. ``sequence``: int64 [N, width] in
    [0, vocab), 0 is padding. Features with the same ``group`` share a token; ``table`` lets a sequence (or a
    second id) use another feature's embedding table.

    Raises:
        UgsepError: an unknown side or kind, a vocabulary or width out of range, or a name that cannot be one of an
            input, a column or an embedding table.
    """

    name: str
    side: Side
    kind: Kind
    vocab: int = 0
    width: int = 1
    group: str = ""
    table: str = ""

    def __post_init__(self) -> None:
        check_name(self.name, "feature")
        if self.group and not (self.group.isprintable() and len(self.group) <= MAX_GROUP):
            raise UgsepError(f"feature '{self.name}': group {self.group!a:.60} is not a valid name; correct it")
        if self.side not in ("user", "item"):
            raise UgsepError(f"feature '{self.name}': side is '{self.side}'; use 'user' or 'item'")
        if self.kind not in ("id", "dense", "sequence"):
            raise UgsepError(f"feature '{self.name}': kind is '{self.kind}'; use 'id', 'dense' or 'sequence'")
        if self.kind != "dense" and self.vocab < 1:
            raise UgsepError(f"feature '{self.name}': vocab is {self.vocab}; an {self.kind} feature needs vocab >= 1")
        if self.kind != "dense" and self.vocab > MAX_VOCAB:
            raise UgsepError(
                f"feature '{self.name}': vocab is {self.vocab}; it must be at most {MAX_VOCAB}, hash the ids"
            )
        if self.kind != "dense":
            what = f"feature '{self.name}': the embedding table"
            check_module_name(self.table_name, what, "give 'table' another name")
        if not 1 <= self.width <= MAX_SIZE:
            bound = "at least 1" if self.width < 1 else f"at most {MAX_SIZE}"
            raise UgsepError(f"feature '{self.name}': width is {self.width}; it must be {bound}")
        if self.kind == "id" and self.width != 1:
            raise UgsepError(f"feature '{self.name}': an id has width 1, not {self.width}; use kind 'sequence'")

    @property
    def table_name(self) -> str:
        """Name of the feature's embedding table."""
        return self.table or self.name

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one row, without the batch axis."""
        return () if self.kind == "id" else (self.width,)

    @property
    def dtype(self) -> torch.dtype:
        """Element type of the input tensor."""
        return torch.float32 if self.kind == "dense" else torch.int64


def of_side(features: Iterable[Feature], side: Side) -> tuple[Feature, ...]:
    """Return the features of one side, in order."""
    return tuple(f for f in features if f.side == side)


def random_rows(features: Iterable[Feature], rows: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Return random inputs [rows, ...]: ids uniform over the vocabulary, dense values normal.

    An eighth of the sequences is all padding: users without a history.
    """
    out: dict[str, Tensor] = {}
    for f in features:
        shape = (rows, *f.row_shape)
        if f.kind == "dense":
            out[f.name] = torch.randn(shape, generator=generator)
        else:
            out[f.name] = torch.randint(0, f.vocab, shape, generator=generator)
        if f.kind == "sequence":
            out[f.name][torch.randint(0, 8, (rows,), generator=generator) == 0] = 0
    return out

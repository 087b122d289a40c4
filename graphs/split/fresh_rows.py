"""Random rows like those of an example, with the patterns of masks and padding that real requests have."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["fresh_rows"]

#: What an additive mask adds to hide a position is at most this; e to its power is 0 in every precision.
_HIDDEN = -1000


def fresh_rows(example: Mapping[str, Tensor], rows: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Return random tensors [rows, ...] like the example's, of the same dtypes.

    Per input, integers are uniform in the example's range, floats normal with its mean and deviation: valid rows for
    a model about which nothing else is known. Booleans, and numbers of which the example holds 0 and 1 only, or the 0
    and -inf of an additive mask, are masks: a quarter of their rows is all of one value, a quarter all of the other.
    Sequences of integers with 0 as their smallest value may be padded: an eighth of their rows is all 0.
    """
    return {name: _column(seen, rows, generator) for name, seen in example.items()}


def _column(seen: Tensor, rows: int, generator: torch.Generator) -> Tensor:
    shape = (rows, *seen.shape[1:])
    if seen.dtype is torch.bool:
        return _mask(torch.tensor([False, True]), shape, generator)
    values = torch.unique(seen)  # sorted
    if values.tolist() == [0, 1] or (len(values) == 2 and values[0] <= _HIDDEN and values[1] == 0):
        return _mask(values, shape, generator)
    if seen.is_floating_point():
        wide = seen.double()
        wide = wide[wide.isfinite()]
        deviation, mean = (wide.std(unbiased=False), wide.mean()) if wide.numel() else (wide.new_zeros(()),) * 2
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        return (noise * deviation + mean).to(seen.dtype)
    low, high = int(seen.min()), int(seen.max())
    if high == torch.iinfo(torch.int64).max:  # randint excludes its upper end, which int64 cannot hold here
        high -= 1
    column = torch.randint(low, high + 1, shape, generator=generator)
    if low == 0 and len(shape) > 1:
        padded = torch.randint(0, 8, (rows,), generator=generator) == 0
        column[padded] = 0
    return column.to(seen.dtype)


def _mask(values: Tensor, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return rows of two values: all the first, all the second, and, for half of the rows, any."""
    column = values[torch.randint(0, 2, shape, generator=generator)]
    # In turn from a random start, so that four rows in a row hold all patterns.
    kind = (torch.arange(shape[0]) + int(torch.randint(0, 4, (1,), generator=generator))) % 4
    column[kind == 0] = values[0]
    column[kind == 2] = values[1]
    return column

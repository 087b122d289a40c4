"""What tensors were made of: those of each feature that were joined, and lengths that are the same for all inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from graphs.trace.jagged.pieces import CASTS, ELEMENT_WISE, JOINS, Pieces
from graphs.trace.jagged.stand_ins import PaddedRows

_FLATTEN = {"reshape", "view", "flatten", "ravel"}
#: Of a constant tensor these have the same value in every place.
_KEEP_VALUE = {
    *(_FLATTEN | CASTS),
    *("expand", "repeat", "unsqueeze", "squeeze", "t", "__getitem__"),
}
_KEEP_PLACES = CASTS | {"expand", "unsqueeze", "__getitem__"}
_ONES, _ZEROS = {"ones", "ones_like", "new_ones"}, {"zeros", "zeros_like", "new_zeros"}
_TURNS = {"t", "T", "transpose"}  # of two axes
_FULL = {"full", "full_like", "new_full"}
_CUMSUM = "asynchronous_complete_cumsum"
_NOTED = {
    *(JOINS | ELEMENT_WISE | _KEEP_VALUE | _ONES | _ZEROS | _FULL | _TURNS),
    *("stack", "arange", "lt", "gt", "cumsum", "pad", _CUMSUM),
}


@dataclass(frozen=True)
class _Made:
    """How a tensor was made; ``tensor`` itself is kept, so that no other has its identity."""

    tensor: Tensor
    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def first(self) -> Any:
        """The first argument."""
        return self.args[0] if self.args else next(iter(self.kwargs.values()), None)

    def get(self, position: int, name: str, default: Any = None) -> Any:
        """Return an argument by position or name."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)


class Provenance(TorchFunctionMode):
    """Notes how tensors are made while it is active; ids that a mask picks become ``Pieces``."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[int, _Made] = {}
        self._picks: dict[int, tuple[Tensor, PaddedRows]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the function and note its result."""
        given = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__get__":  # of a property, such as T
            name = func.__self__.__name__  # type: ignore[attr-defined]  # of a bound method
        if name in ("__getitem__", "masked_select"):
            picked = self._picked(*args)
            if picked is not None:
                return picked
        result = func(*args, **given)
        if name == "__setitem__" or (name.endswith("_") and not name.endswith("__")):
            self._forget(args[0])
        elif name in _NOTED and _may_be_jagged(result) and not any(result is a for a in args):
            self._made[id(result)] = _Made(result, name, func, args, given)
        return result

    def pieces(self, tensor: Tensor) -> list[Tensor]:
        """Return the tensors that were joined along the first axis to make a tensor, or itself."""
        made = self._made.get(id(tensor))
        if made is None:
            return [tensor]
        if made.name in JOINS and made.get(1, "dim", 0) in (0, -tensor.dim()):
            return [piece for part in made.first for piece in self.pieces(part)]
        if made.name in _FLATTEN and tensor.dim() == 1:
            return self._rows(made.first) or [tensor]
        others = (*made.args[1:], *made.kwargs.values())
        if made.name in ELEMENT_WISE and not any(isinstance(other, Tensor) for other in others):
            before = self.pieces(made.first)
            return [made.function(p, *made.args[1:], **made.kwargs) for p in before] if len(before) > 1 else [tensor]
        return [tensor]

    def _rows(self, tensor: Tensor) -> list[Tensor]:
        """Return the tensors that were stacked, or joined."""
        if tensor.dim() == 1:
            return self.pieces(tensor)
        made, axis = self._made.get(id(tensor)), 0
        if made is not None and made.name in ("contiguous", "clone"):
            return self._rows(made.first)
        if made is not None and made.name in _TURNS and tensor.dim() == 2:
            made, axis = self._made.get(id(made.first)), 1
        if made is None or made.name != "stack" or tensor.dim() != 2:
            return []
        return list(made.first) if made.get(1, "dim", 0) in (axis, axis - 2) else []

    def constant(self, tensor: Tensor) -> int | None:
        """Return the number in every place of a tensor, if it is always the same."""
        made = self._made.get(id(tensor))
        if made is None:
            return None
        if made.name in _ONES | _ZEROS:
            return int(made.name in _ONES)
        if made.name in _FULL:
            value = made.get(2 if made.name == "new_full" else 1, "fill_value")
            return value if isinstance(value, int) else None
        if made.name in JOINS:
            values = {self.constant(part) for part in made.first}
            return values.pop() if len(values) == 1 else None
        return self.constant(made.first) if made.name in _KEEP_VALUE and isinstance(made.first, Tensor) else None

    def counts_up(self, tensor: Tensor) -> bool:
        """Return whether a tensor is 0, 1, 2 and so on along one axis."""
        made = self._made.get(id(tensor))
        if made is None:
            return False
        if made.name == "arange":
            if len(made.args) < 2:
                return bool(made.kwargs.get("start", 0) == 0 and made.kwargs.get("step", 1) == 1)
            return bool(made.args[0] == 0 and made.get(2, "step", 1) == 1)
        # Another last axis: the numbers go along another one.
        kept = made.name in _KEEP_PLACES and bool(tensor.shape[-1] == made.first.shape[-1])
        return kept and (made.name != "__getitem__" or _adds_axes(made.args[1])) and self.counts_up(made.first)

    def lengths_of_offsets(self, offsets: Tensor) -> Tensor | int | None:
        """Return the lengths that offsets were made of, 1 if they count up, None if they are unknown."""
        made = self._made.get(id(offsets))
        if self.counts_up(offsets):
            return 1
        if made is None:
            return None
        if made.name == _CUMSUM:
            return self._tensor(made.first)
        if made.name == "pad":
            plain = tuple(made.get(1, "pad")) == (1, 0) and not made.get(3, "value")
            return self._summed(made.first) if plain else None
        if made.name in JOINS and len(made.first) == 2:
            zero, sums = made.first
            return self._summed(sums) if zero.numel() == 1 and self.constant(zero) == 0 else None
        return self.lengths_of_offsets(made.first) if made.name in CASTS else None

    def _summed(self, sums: Tensor) -> Tensor | None:
        made = self._made.get(id(sums))
        if made is not None and made.name in CASTS:
            return self._summed(made.first)
        return self._tensor(made.first) if made is not None and made.name == "cumsum" else None

    def _tensor(self, value: Any) -> Tensor | None:
        return value if isinstance(value, Tensor) else None

    def _picked(self, source: Any, index: Any = None, *others: Any) -> Pieces | None:
        """Return the ids of a padded tensor that a mask [N, L] picks."""
        (mask,) = index if isinstance(index, tuple) and len(index) == 1 else (index,)
        if not isinstance(source, Tensor) or not isinstance(mask, Tensor) or mask.dtype is not torch.bool:
            return None
        if mask.dim() != 2 or source.dim() < 2:
            return None
        lengths = self._first_places(mask)
        if lengths is None and (source.is_floating_point() or source.dtype is torch.bool):
            return None
        counts = mask.sum(1) if lengths is None else lengths
        made = PaddedRows.of("tensor[mask]", source, counts, mask=mask if lengths is None else None)
        made = made.mapped("values", lambda rows: rows)  # what is not picked may be no valid id
        _, first = self._picks.setdefault(id(mask), (mask, made))
        return Pieces("values", [replace(made, origin=first)])

    def _first_places(self, mask: Tensor) -> Tensor | None:
        """Return the lengths of which a mask is ``arange(L) < lengths.unsqueeze(1)``."""
        made = self._made.get(id(mask))
        if made is None or made.name not in ("lt", "gt"):
            return None
        places, column = (made.first, made.get(1, "other"))[:: 1 if made.name == "lt" else -1]
        if not isinstance(places, Tensor) or not isinstance(column, Tensor) or not self.counts_up(places):
            return None
        made = self._made.get(id(column))
        if made is None or column.dim() != 2 or made.name not in ("unsqueeze", "__getitem__"):
            return None
        if made.name == "__getitem__" and not _adds_axes(made.args[1]):
            return None
        return self._tensor(made.first) if made.first.dim() == 1 and column.shape[1] == 1 else None

    def _forget(self, changed: Any) -> None:
        """Forget how a tensor was made that was written into, and those that share its memory."""
        if isinstance(changed, Tensor) and changed.layout is torch.strided:
            memory = changed.untyped_storage()._cdata
            self._made = {
                key: made for key, made in self._made.items() if made.tensor.untyped_storage()._cdata != memory
            }


def _may_be_jagged(result: Any) -> bool:
    """Return whether a result may become values, weights or lengths; others, which may be large, are not kept."""
    return isinstance(result, Tensor) and (result.dim() == 1 or not result.is_floating_point())


def _adds_axes(index: Any) -> bool:
    """Return whether an index only adds axes."""
    parts = index if isinstance(index, tuple) else (index,)
    return all(p is None or (isinstance(p, slice) and p == slice(None)) for p in parts)

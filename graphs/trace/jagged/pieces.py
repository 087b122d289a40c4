"""The values of jagged features one feature after the other, as TorchRec keeps them: without fixed places."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
import torch.utils._pytree as pytree

from graphs.base.errors import UgsepError

#: What KeyedJaggedTensors are made of.
KINDS = ("values", "weights", "lengths", "offsets")
JOINS = {"cat", "concat", "concatenate"}
#: The same numbers.
CASTS = {"long", "int", "to", "type", "contiguous", "clone", "detach"}
#: Element by element, if all others are numbers: the same for padded places.
ELEMENT_WISE = CASTS | {
    *("float", "half"),
    *("remainder", "clamp", "clamp_min", "clamp_max", "clip", "abs", "add", "sub", "mul"),
}


class _NotPadded(UgsepError, AttributeError):
    """What a jagged tensor has and a padded one has not; also an AttributeError, which ``hasattr`` expects."""


def refuse(feature: str, what: str) -> NoReturn:
    """Raise that the model reads ``what`` of a feature."""
    raise _NotPadded(
        f"the model reads {what} of {feature}, whose rows have no fixed places there; read to_padded_dense(K), or "
        "declare features of one id per row with --single"
    )


class Pieces:
    """Stands in for a tensor in a jagged tensor; other jagged tensors can be made of it, and nothing else.

    ``blocks`` are padded rows, whose ``kind`` (values, weights, lengths or offsets) it holds one after the other, and
    tensors that were joined with them.
    """

    def __init__(self, kind: str, blocks: Sequence[Any]) -> None:
        self.kind = kind
        self.blocks = tuple(blocks)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Join and convert, or refuse."""
        given = kwargs or {}
        name = getattr(func, "__name__", "")
        first = args[0] if args else given.get("tensors", given.get("input"))
        if name in JOINS:
            return _joined(list(first or ()))
        if name in ELEMENT_WISE and isinstance(first, Pieces):
            return first._each(name, lambda rows: func(rows, *args[1:], **given), (args[1:], given))
        next(p for p in pytree.tree_leaves((args, given)) if isinstance(p, Pieces))._refuse()

    @property
    def device(self) -> torch.device:
        """Where the values are."""
        found: torch.device = self.blocks[0].device() if callable(self.blocks[0].device) else self.blocks[0].device
        return found

    def _each(self, name: str, function: Callable[..., Any], others: Any) -> Pieces:
        if any(isinstance(other, (torch.Tensor, Pieces)) for other in pytree.tree_leaves(others)):
            self._refuse()
        if self.kind in ("lengths", "offsets"):
            return self if name in CASTS else self._refuse()
        blocks = [b.mapped(self.kind, function) if hasattr(b, "mapped") else function(b) for b in self.blocks]
        return Pieces(self.kind, blocks)

    def _refuse(self) -> NoReturn:
        one = getattr(self.blocks[0], "name", "") if len(self.blocks) == 1 else ""
        refuse(f"'{one}'" if one else "a KeyedJaggedTensor", f"the jagged {self.kind}")

    def __mod__(self, other: Any) -> Any:
        return torch.remainder(self, other)  # type: ignore[call-overload]  # dispatched to __torch_function__

    def __add__(self, other: Any) -> Any:
        return torch.add(self, other)  # type: ignore[call-overload]  # dispatched to __torch_function__

    def __sub__(self, other: Any) -> Any:
        return torch.sub(self, other)  # type: ignore[call-overload]  # dispatched to __torch_function__

    def __mul__(self, other: Any) -> Any:
        return torch.mul(self, other)  # type: ignore[arg-type]  # dispatched to __torch_function__

    def __getitem__(self, index: Any) -> NoReturn:
        self._refuse()

    def __len__(self) -> NoReturn:
        self._refuse()

    def __getattr__(self, name: str) -> Any:
        if name in ELEMENT_WISE:
            method = getattr(torch.Tensor, name)
            return lambda *args, **given: self._each(name, lambda rows: method(rows, *args, **given), (args, given))
        self._refuse()


def _joined(parts: Sequence[Any]) -> Pieces:
    first = next(p for p in parts if isinstance(p, Pieces))
    for part in parts:
        if isinstance(part, Pieces) and part.kind != first.kind:
            part._refuse()
    if first.kind == "offsets":
        first._refuse()
    return Pieces(first.kind, [b for p in parts for b in (p.blocks if isinstance(p, Pieces) else (p,))])

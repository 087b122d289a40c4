"""Where the tensors of a request lie among its bytes, once another request with the same head was checked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from engines.backends.contract import Array
from engines.serve.oip.request import Reply, Tensors
from engines.serve.oip.signature import Input, Signature
from graphs.base.errors import UgsepError
from graphs.base.names import USER_INDEX

__all__ = ["Layout", "layout_of"]

#: The bytes of the largest element. Runtimes may use loads that fault on an address that is no multiple of an
#: element's size. The content of a ``bytes`` object is: its header of 32 bytes follows an allocation aligned to 16.
_ALIGNMENT = 8


class _Place(NamedTuple):
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    offset: int
    aligned: bool


class Layout(NamedTuple):
    """The places of a complete request's tensors, by role, from where the first one starts.

    Most of them are aligned if that is ``shift`` bytes after a multiple of the largest element's size.
    """

    user: tuple[_Place, ...]
    items: tuple[_Place, ...]
    user_index: tuple[_Place, ...]
    shift: int

    def read(self, data: bytes, start: int) -> tuple[dict[str, Array], dict[str, Array], Array | None]:
        """Return user features, item features and ``user_index``, read-only, from the bytes at ``start``.

        They are views where they are aligned. If most are not, all bytes are copied at once to where they are; the
        bytes before ``start`` fill the gap.
        """
        if (start - self.shift) % _ALIGNMENT:
            data, start = data[start - self.shift :], self.shift
        index = _read(self.user_index, data, start).get(USER_INDEX) if self.user_index else None
        return _read(self.user, data, start), _read(self.items, data, start), index


def layout_of(
    signature: Signature, users_only: bool, tensors: Sequence[tuple[Input, tuple[int, ...], int]], room: int
) -> Layout | None:
    """Return the layout of tensors with checked headers, from rule, shape and offset, or None if there is more to do.

    More to do is the error of a request that lacks a tensor or repeats one, and to look at every byte of a boolean.
    ``room`` is how many bytes there are before the first one.
    """
    checked = Tensors(signature, users_only)
    nothing: Array = np.empty(0)
    try:
        for rule, _, _ in tensors:
            checked.add(rule, nothing)
        checked.decoded(0.0, Reply(""))
    except UgsepError:
        return None
    if room < _ALIGNMENT or any(rule.dtype.kind == "b" for rule, _, _ in tensors):
        return None
    shift = min(range(_ALIGNMENT), key=lambda at: sum(_copied(rule, s, o + at) for rule, s, o in tensors))
    roles: dict[str, list[_Place]] = {"user": [], "item": [], "index": []}
    for rule, shape, offset in tensors:
        aligned = not _copied(rule, shape, offset + shift)
        roles[rule.role].append(_Place(rule.name, shape, rule.dtype, offset, aligned))
    return Layout(tuple(roles["user"]), tuple(roles["item"]), tuple(roles["index"]), shift)


def _copied(rule: Input, shape: tuple[int, ...], at: int) -> int:
    """Return the bytes of a tensor at an address if it is not aligned there, else 0."""
    return shape[0] * rule.row_elements * rule.dtype.itemsize if at % rule.dtype.itemsize else 0


def _read(places: Iterable[_Place], data: bytes, start: int) -> dict[str, Array]:
    found: dict[str, Array] = {}
    for name, shape, dtype, offset, aligned in places:
        value: Array = np.ndarray(shape, dtype, data, start + offset)
        found[name] = value if aligned else value.copy()
    return found

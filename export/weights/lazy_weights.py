"""Constants of a graph whose weights are still on disk: where each one's numbers come from, read piece by piece.

A model built on the meta device has shapes but no numbers. Its constants are parameters, views of parameters
(slices, transposes), or the result of operations on parameters; ``Recorder`` notes the last while the model is folded
and split. ``Weights`` then reads any box of a constant from the checkpoint.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from export.weights.direct_io import File, open_file, reading_ahead
from graphs.base.errors import UgsepError
from graphs.checkpoint.files import Stored, check_finite

aten = torch.ops.aten

#: What may be in memory at once to compute a constant from parameters.
COMPUTED_BYTES = 512 << 20
#: A box is read in one go, gaps included, unless the gaps outweigh the numbers this many times ...
_SPAN_TIMES = 4
#: ... and the pieces are at least this long.
_PIECE_BYTES = 4096

Box = tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class Computed:
    """The result of one operation, arguments being constants; ``shape`` is that of the whole contiguous result."""

    function: Any
    args: Any
    kwargs: Any
    dtype: torch.dtype
    shape: tuple[int, ...]

    def inputs(self) -> list[Constant]:
        """Return the constants among the arguments."""
        return [c for c in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(c, Constant)]


@dataclass(frozen=True)
class Constant:
    """A tensor as elements of a base, a stored parameter's name or a computation, like ``torch.as_strided``."""

    base: str | Computed
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0

    def transposed(self) -> Constant:
        """Return the constant with its last two axes swapped."""
        shape, strides = list(self.shape), list(self.strides)
        shape[-2:], strides[-2:] = reversed(shape[-2:]), reversed(strides[-2:])
        return replace(self, shape=tuple(shape), strides=tuple(strides))

    @property
    def elements(self) -> int:
        """Number of elements."""
        return torch.Size(self.shape).numel()


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it without types
    """Notes, while it is active, what operations on a meta model's parameters compute.

    Not to be active while a model is traced: only the constants of the finished graph are of interest.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it without types
        self._bases: dict[int, str | Computed] = {}
        self._alive: list[Tensor] = []
        for name, tensor in model.state_dict(keep_vars=True).items():
            self._bases.setdefault(tensor.untyped_storage()._cdata, name)
            self._alive.append(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation; remember its result where it comes from parameters."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        given = [a for a in pytree.tree_leaves((args, kwargs)) if isinstance(a, Tensor)]
        if not isinstance(result, Tensor) or isinstance(result, FakeTensor) or result.device.type != "meta":
            return result
        key = result.untyped_storage()._cdata
        if key not in self._bases and any(a.untyped_storage()._cdata in self._bases for a in given):
            arguments, options = pytree.tree_map_only(Tensor, self._argument, (args, kwargs))
            self._bases[key] = Computed(func, arguments, options, result.dtype, tuple(result.shape))
            self._alive.append(result)
        return result

    def _argument(self, tensor: Tensor) -> Constant | Tensor:
        return self.constant(tensor, "an argument") if tensor.device.type == "meta" else tensor

    def constant(self, tensor: Tensor, name: str) -> Constant:
        """Return where a meta tensor's numbers come from; ``name`` is for the error.

        Raises:
            UgsepError: neither a parameter nor computed from parameters while recording.
        """
        base = self._bases.get(tensor.untyped_storage()._cdata)
        if base is None:
            raise UgsepError(
                f"constant '{name}' is neither a weight of the checkpoint nor computed from them; make it a "
                "persistent buffer, or build the model in memory with 'ugsep build'"
            )
        return Constant(base, tensor.dtype, tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()))


class Weights:
    """The open files of a checkpoint; ``read`` may be called from several threads."""

    def __init__(self, stored: Mapping[str, Stored], files: Mapping[Path, File]) -> None:
        self._stored = stored
        self._files = files
        self._lock = threading.Lock()
        self._last: tuple[Computed, Tensor] | None = None

    def read(self, constant: Constant, box: Box | None = None, name: str = "") -> Tensor:
        """Return a box of a constant as ``read_unchecked`` does.

        Raises:
            UgsepError: NaN or infinite weights, or a computation that needs too much memory; ``name`` is for it.
        """
        found = self.read_unchecked(constant, box, name)
        self.check(constant, found, name)
        return found

    def reading_ahead(self, limit: int) -> AbstractContextManager[threading.Event]:
        """Return ``export.weights.direct_io.reading_ahead`` over the files of the checkpoint."""
        return reading_ahead([self._files[path] for path in sorted(self._files)], limit)

    def check(self, constant: Constant, value: Tensor, name: str) -> None:
        """Refuse NaN and infinite values of a constant, naming the stored weight and its file."""
        base = constant.base if isinstance(constant.base, str) else _first_stored(constant.base)
        check_finite(base or name, value, self._stored[base].file if base else Path(name))

    def read_unchecked(
        self, constant: Constant, box: Box | None = None, name: str = "", room: Tensor | None = None
    ) -> Tensor:
        """Return a box of a constant, whole without ``box``, in the dtype it is stored in (computed: its own).

        The result may be a strided view of a larger buffer, and lie in ``room``, uint8 at the start of a page, where
        that is given and large enough. Numbers are not looked at.

        Raises:
            UgsepError: a computation that needs too much memory.
        """
        box = box or tuple((0, size) for size in constant.shape)
        if isinstance(constant.base, Computed):
            return self._computed(constant, constant.base, box, name)
        stored = self._stored[constant.base]
        begin = constant.offset + sum(low * s for (low, _), s in zip(box, constant.strides, strict=True))
        return self._strided(stored, tuple(b - a for a, b in box), constant.strides, begin, room)

    def _strided(
        self,
        stored: Stored,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        begin: int,
        room: Tensor | None = None,
    ) -> Tensor:
        size = stored.dtype.itemsize
        span = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        elements = torch.Size(shape).numel()
        widest = max(range(len(shape)), key=lambda i: strides[i] if shape[i] > 1 else 0, default=0)
        if span > _SPAN_TIMES * elements and elements // shape[widest] * size >= _PIECE_BYTES:
            rest = tuple(1 if i == widest else n for i, n in enumerate(shape))
            steps = range(begin, begin + shape[widest] * strides[widest], strides[widest])
            return torch.cat([self._strided(stored, rest, strides, step) for step in steps], widest)
        raw = self._files[stored.file].read(stored.offset + begin * size, span * size, room, size)
        return raw.view(stored.dtype).as_strided(shape, strides)

    def _computed(self, constant: Constant, base: Computed, box: Box, name: str) -> Tensor:
        whole = constant.offset == 0 and constant.shape == base.shape and _contiguous(base.shape) == constant.strides
        if base.function is aten.cat.default and whole:
            return self._joined(base, box, name)
        with self._lock:  # units of one constant are read one after the other: its result is kept
            if self._last is None or self._last[0] is not base:
                self._last = None
                self._last = base, self._evaluated(base, name)
            found = self._last[1].as_strided(constant.shape, constant.strides, constant.offset)
        return found[tuple(slice(a, b) for a, b in box)]

    def _evaluated(self, wanted: Computed, name: str) -> Tensor:
        """Compute a result from its parameters, every step once."""
        steps = _steps(wanted)
        leaves = {c for step in steps for c in step.inputs() if isinstance(c.base, str)}
        need = sum(torch.Size(s.shape).numel() * s.dtype.itemsize for s in steps)
        need += sum(leaf.elements * leaf.dtype.itemsize for leaf in leaves)
        if need > COMPUTED_BYTES:
            raise UgsepError(
                f"constant '{name}' takes {need / 2**20:.3g} MiB at once to compute ({wanted.function}), more than "
                f"{COMPUTED_BYTES / 2**20:.3g}; build this model in memory with 'ugsep build'"
            )
        results: dict[Computed, Tensor] = {}

        def value(constant: Constant) -> Tensor:
            if isinstance(constant.base, Computed):
                return results[constant.base].as_strided(constant.shape, constant.strides, constant.offset)
            return self.read(constant, name=name).to(constant.dtype)

        for step in steps:
            args, kwargs = pytree.tree_map_only(Constant, value, (step.args, step.kwargs))
            if "device" in kwargs:
                kwargs["device"] = torch.device("cpu")
            results[step] = step.function(*args, **kwargs).contiguous()
        return results[wanted]

    def _joined(self, base: Computed, box: Box, name: str) -> Tensor:
        """Read a box of joined slices: what of it lies in each."""
        parts = base.args[0]
        axis = (base.args[1] if len(base.args) > 1 else 0) % len(base.shape)
        found, at = [], 0
        for part in parts:
            low, high = max(box[axis][0] - at, 0), min(box[axis][1] - at, part.shape[axis])
            if low < high:
                found.append(self.read_unchecked(part, (*box[:axis], (low, high), *box[axis + 1 :]), name))
            at += part.shape[axis]
        return torch.cat(found, axis)


@contextmanager
def open_weights(stored: Mapping[str, Stored]) -> Iterator[Weights]:
    """Open the files of a checkpoint for reading in pieces."""
    with ExitStack() as stack:
        files = sorted({s.file for s in stored.values()})
        yield Weights(stored, {file: stack.enter_context(open_file(file)) for file in files})


def _steps(wanted: Computed) -> list[Computed]:
    """Return a computation and those it reads, each once, inputs first."""
    ordered: dict[Computed, None] = {}
    stack = [(wanted, False)]
    while stack:
        step, ready = stack.pop()
        if ready:
            ordered[step] = None
        elif step not in ordered:
            stack.append((step, True))
            stack += [(c.base, False) for c in step.inputs() if isinstance(c.base, Computed)]
    return list(ordered)


def _first_stored(computed: Computed) -> str | None:
    """Return the name of a stored weight that a computation reads."""
    return next((c.base for step in _steps(computed) for c in step.inputs() if isinstance(c.base, str)), None)


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    return torch.empty(shape, device="meta").stride()

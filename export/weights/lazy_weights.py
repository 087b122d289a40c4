"""Constants of a graph whose weights are still on disk: where their values come from, read slice by slice.

A model built on the meta device has shapes but no values. Its constants are parameters, views of parameters (slices,
transposes), or results of operations on parameters; ``Recorder`` records the last while the model is folded and
split. ``Weights`` then reads any slice of a constant from the checkpoint.
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

#: Memory limit for computing a constant from parameters.
COMPUTED_BYTES = 512 << 20
#: A slice is read in one call, gaps included, unless the span is this many times its values ...
_SPAN_TIMES = 4
#: ... and the chunks between the gaps are at least this long.
_CHUNK_BYTES = 4096

#: A slice of a constant: (first, end) along every axis.
Slice = tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class Computed:
    """The result of one operation on constants; ``shape`` is that of the whole contiguous result."""

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
    """A strided view, like ``torch.as_strided``, of a stored parameter (by name) or of a computation."""

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


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # untyped in torch
    """Records, while active, what operations on a meta model's parameters compute.

    Keep it inactive while a model is traced: only constants of the finished graph matter.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped in torch
        self._bases: dict[int, str | Computed] = {}
        self._alive: list[Tensor] = []
        for name, tensor in model.state_dict(keep_vars=True).items():
            self._bases.setdefault(tensor.untyped_storage()._cdata, name)
            self._alive.append(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation; record its result if it depends on parameters."""
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
        """Return where a meta tensor's values come from; ``name`` is used in the error.

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

    def read(self, constant: Constant, bounds: Slice | None = None, name: str = "") -> Tensor:
        """Return a slice of a constant as ``read_unchecked`` does.

        Raises:
            UgsepError: NaN or infinite weights, or a computation that needs too much memory; ``name`` is used in it.
        """
        found = self.read_unchecked(constant, bounds, name)
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
        self, constant: Constant, bounds: Slice | None = None, name: str = "", buffer: Tensor | None = None
    ) -> Tensor:
        """Return a slice of a constant, by default all of it, in the dtype it is stored in (computed: its own).

        The result may be a strided view of a larger tensor, and lies in ``buffer``, page-aligned uint8, if that is
        given and large enough. Values are not checked.

        Raises:
            UgsepError: a computation that needs too much memory.
        """
        bounds = bounds or tuple((0, size) for size in constant.shape)
        if isinstance(constant.base, Computed):
            return self._computed(constant, constant.base, bounds, name)
        stored = self._stored[constant.base]
        begin = constant.offset + sum(low * s for (low, _), s in zip(bounds, constant.strides, strict=True))
        return self._strided(stored, tuple(b - a for a, b in bounds), constant.strides, begin, buffer)

    def _strided(
        self,
        stored: Stored,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        begin: int,
        buffer: Tensor | None = None,
    ) -> Tensor:
        size = stored.dtype.itemsize
        span = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        elements = torch.Size(shape).numel()
        widest = max(range(len(shape)), key=lambda i: strides[i] if shape[i] > 1 else 0, default=0)
        if span > _SPAN_TIMES * elements and elements // shape[widest] * size >= _CHUNK_BYTES:
            rest = tuple(1 if i == widest else n for i, n in enumerate(shape))
            steps = range(begin, begin + shape[widest] * strides[widest], strides[widest])
            return torch.cat([self._strided(stored, rest, strides, step) for step in steps], widest)
        raw = self._files[stored.file].read(stored.offset + begin * size, span * size, buffer, size)
        return raw.view(stored.dtype).as_strided(shape, strides)

    def _computed(self, constant: Constant, base: Computed, bounds: Slice, name: str) -> Tensor:
        whole = constant.offset == 0 and constant.shape == base.shape and _contiguous(base.shape) == constant.strides
        if base.function is aten.cat.default and whole:
            return self._joined(base, bounds, name)
        with self._lock:  # chunks of one constant are read in sequence: keep its result
            if self._last is None or self._last[0] is not base:
                self._last = None
                self._last = base, self._evaluated(base, name)
            found = self._last[1].as_strided(constant.shape, constant.strides, constant.offset)
        return found[tuple(slice(a, b) for a, b in bounds)]

    def _evaluated(self, wanted: Computed, name: str) -> Tensor:
        """Compute a result from its parameters, each step once."""
        steps = _steps(wanted)
        leaves = {c for step in steps for c in step.inputs() if isinstance(c.base, str)}
        need = sum(torch.Size(s.shape).numel() * s.dtype.itemsize for s in steps)
        need += sum(leaf.elements * leaf.dtype.itemsize for leaf in leaves)
        if need > COMPUTED_BYTES:
            raise UgsepError(
                f"constant '{name}' needs {need / 2**20:.3g} MiB to compute ({wanted.function}), more than "
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

    def _joined(self, base: Computed, bounds: Slice, name: str) -> Tensor:
        """Read a slice of a concatenation: the overlap with each input."""
        parts = base.args[0]
        axis = (base.args[1] if len(base.args) > 1 else 0) % len(base.shape)
        found, at = [], 0
        for part in parts:
            low, high = max(bounds[axis][0] - at, 0), min(bounds[axis][1] - at, part.shape[axis])
            if low < high:
                found.append(self.read_unchecked(part, (*bounds[:axis], (low, high), *bounds[axis + 1 :]), name))
            at += part.shape[axis]
        return torch.cat(found, axis)


@contextmanager
def open_weights(stored: Mapping[str, Stored]) -> Iterator[Weights]:
    """Open the files of a checkpoint for reading in slices."""
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

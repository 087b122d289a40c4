"""The contract every backend fulfils, and how backends are found: one module in ``engines/backends`` each.

``engines/backends/tensorrt_rtx/build.py`` is the backend ``tensorrt-rtx``. Adding a backend adds one file there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from graphs.base.errors import UgsepError, nearest

Side = Literal["user", "item", "full"]
Option = str | int | float | bool
Array = NDArray[Any]
Progress = Callable[[str], None]

#: What a precision says: how weights are stored, and what the GEMMs multiply.
PRECISIONS: dict[str, str] = {
    "fp32": "FP32 weights, FP32 GEMMs",
    "fp16": "FP16 weights, FP16 GEMMs",
    "bf16": "FP32 weights on disk, BF16 GEMMs",
    "w8a16": "int8 weights, FP16 activations",
    "w8a32": "int8 weights, FP32 activations and exact FP32 GEMMs",
    "w8a8-dynamic": "int8 weights, activations quantized to int8 per row while running",
}

#: What became of one weight in the engine, as read back from what the runtime really compiled.
WeightStatus = Literal["fused-int8", "gathered-int8", "dequantized-each-run", "folded-to-float", "float", "missing"]


@dataclass(frozen=True)
class Rows:
    """How many rows a dynamic axis takes: at least, mostly (kernels are tuned for it), at most."""

    min: int = 1
    opt: int = 1
    max: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise UgsepError(f"profile rows {self.min}/{self.opt}/{self.max}: need 1 <= min <= opt <= max")


@dataclass(frozen=True)
class Profile:
    """One bucket of input sizes: rows of the ``users`` axis and of the ``candidates`` axis."""

    users: Rows = field(default_factory=Rows)
    candidates: Rows = field(default_factory=lambda: Rows(1, 256, 1024))

    @property
    def name(self) -> str:
        """The bucket in words: ``users 1-1, candidates 65-256 (most often 256)``."""
        users, rows = self.users, self.candidates
        return f"users {users.min}-{users.max}, candidates {rows.min}-{rows.max} (most often {rows.opt})"


@dataclass(frozen=True)
class BuildSpec:
    """What to build: one ONNX file (of the variant ``Backend.ONNX_VARIANT[precision]``) at one precision.

    ``scratch``: where a backend may keep what speeds up later builds, such as kernel timings; no part of the result.
    """

    side: Side
    onnx: Path
    precision: str
    profiles: tuple[Profile, ...] = (Profile(),)
    options: Mapping[str, Option] = field(default_factory=dict)
    scratch: Path | None = None


def usual_rows(spec: BuildSpec) -> int:
    """Return how many rows the engine is tuned for: the largest ``opt`` of its profiles on its own side's axis."""
    return max((p.users.opt if spec.side == "user" else p.candidates.opt) for p in spec.profiles)


@dataclass(frozen=True)
class Availability:
    """Can this machine build for the backend, can it run what it built, and the reason where it cannot."""

    can_build: bool
    can_run: bool
    reason: str = ""


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: name, NumPy dtype name, shape with a string for a dynamic axis."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class EngineWeight:
    """What the compiled engine does with one GEMM weight; ``detail`` names the node, kernel or layer."""

    name: str
    status: WeightStatus
    detail: str = ""


@dataclass(frozen=True)
class BuiltEngine:
    """A finished build, and all that ``load`` needs beside the files; goes into the manifest as it is.

    ``files`` are relative to the build's directory, ``bytes`` is their sum, ``session`` the pinned runtime
    settings, ``requires`` what the machine must have (``isa`` or ``compute_capability``), ``tools`` the
    versions that made it, ``figures`` numbers worth reporting (seconds to build, size ratios).
    """

    backend: str
    side: Side
    precision: str
    files: tuple[str, ...]
    bytes: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    session: Mapping[str, Option] = field(default_factory=dict)
    requires: Mapping[str, str] = field(default_factory=dict)
    tools: Mapping[str, str] = field(default_factory=dict)
    profiles: tuple[Profile, ...] = ()
    weights: tuple[EngineWeight, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def max_candidates(self) -> int:
        """Most candidates of any profile; 0 where the engine has no profiles, and so no limit."""
        return max((p.candidates.max for p in self.profiles), default=0)


class Runner(Protocol):
    """A loaded engine; ``infer`` may be called from several threads at once."""

    def infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once; feeds and results by tensor name, rows first."""
        ...

    def close(self) -> None:
        """Release what the engine holds; ``infer`` must not be called afterwards."""
        ...


class DeviceArray(Protocol):
    """A tensor in a device's memory, made by one runner for others of the same ``memory``; opaque to all else."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes it holds on the device until it is dropped."""
        ...

    def numpy(self) -> Array:
        """Return a copy in host memory."""
        ...


@runtime_checkable
class DeviceRunner(Runner, Protocol):
    """A runner that can leave its results on its device, and read what another one of the same ``memory`` left there.

    That is how a user's state goes from the user engine to the item engine without a copy through the host.
    """

    @property
    def memory(self) -> str:
        """Which device memory, and whose arrays: ``onnxruntime cuda:0``."""
        ...

    def infer(self, feeds: Mapping[str, Array | DeviceArray]) -> dict[str, Array]:
        """Run once; results are copied to the host."""
        ...

    def infer_on_device(self, feeds: Mapping[str, Array | DeviceArray]) -> dict[str, DeviceArray]:
        """Run once; results stay on the device and belong to the caller: no later run changes them."""
        ...


class Backend(Protocol):
    """What a backend's module defines at its top level."""

    @property
    def ONNX_VARIANT(self) -> Mapping[str, str]:
        """Precisions it builds, best known first, each with the ONNX variant it reads.

        The file is ``onnx/<side>.onnx`` ("fp32") or ``onnx/<side>.<variant>.onnx`` ("w8a32", "w8a16").
        """
        ...

    @property
    def OPTIONS(self) -> Mapping[str, Option]:
        """Build options with their defaults; a ``threads`` option takes the recipe's thread count."""
        ...

    def probe(self) -> Availability:
        """Say what is possible on this machine; never raises, imports lazily."""
        ...

    def target(self) -> str:
        """Name what an engine built here is tied to: the ISA, the GPU, or ``any machine``; part of cache keys."""
        ...

    def build(self, spec: BuildSpec, out_dir: Path, progress: Progress) -> BuiltEngine:
        """Write the engine's files into ``out_dir``, read back what was compiled, fail if not as named."""
        ...

    def load(
        self, directory: Path, built: BuiltEngine, threads: int | None = None, runtime_cache: Path | None = None
    ) -> Runner:
        """Load a built engine.

        ``threads`` replaces the pinned intra-op thread count on CPUs; ``runtime_cache`` is a file outside the bundle
        in which a backend that compiles kernels while serving may keep them for the next process.
        """
        ...


def check_precision(name: str, backend: Backend, precision: str) -> str:
    """Return the ONNX variant the backend reads for a precision.

    Raises:
        UgsepError: the backend does not build that precision.
    """
    if precision not in backend.ONNX_VARIANT:
        raise UgsepError(
            f"backend '{name}' does not build precision '{precision}'{nearest(precision, backend.ONNX_VARIANT)}"
        )
    return backend.ONNX_VARIANT[precision]


def check_options(name: str, given: Mapping[str, Option], defaults: Mapping[str, Option]) -> dict[str, Option]:
    """Return a backend's options with defaults filled in.

    Raises:
        UgsepError: an unknown option, or a value of another type than its default.
    """
    for key, value in given.items():
        if key not in defaults:
            raise UgsepError(f"backend '{name}': unknown option '{key}'{nearest(key, defaults)}")
        if type(value) is not type(defaults[key]):
            want = type(defaults[key]).__name__
            raise UgsepError(f"backend '{name}': option '{key}' is {value!r}; give {want}, like {defaults[key]!r}")
    return {**defaults, **given}


def check_feeds(expected: tuple[TensorSpec, ...], feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Return feeds as C-contiguous arrays, checked against an engine's inputs.

    float32 and float16 become what the engine takes: features are float32 on disk, whatever an engine computes in.
    No other dtype is converted.

    Raises:
        UgsepError: a missing or unknown input, a wrong dtype, rank or fixed dimension, zero rows, or a value that
            float16 cannot hold.
    """
    names = {spec.name for spec in expected}
    for name in feeds:
        if name not in names:
            raise UgsepError(f"unknown input '{name}'{nearest(name, names)}")
    checked: dict[str, Array] = {}
    for spec in expected:
        array = feeds.get(spec.name)
        if array is None:
            raise UgsepError(f"input '{spec.name}' is missing; the engine needs {', '.join(sorted(names))}")
        wanted = np.dtype(spec.dtype)  # not compared by name: NumPy composes that anew each time, in microseconds
        convert = array.dtype != wanted
        if not _fits(spec.shape, array.shape) or (convert and {array.dtype, wanted} != _FLOATS):
            want = f"{spec.dtype}[{', '.join(map(str, spec.shape))}]"
            raise UgsepError(f"input '{spec.name}' is {array.dtype}{list(array.shape)}; the engine takes {want}")
        if 0 in array.shape:
            raise UgsepError(f"input '{spec.name}' has no rows: shape {list(array.shape)}; give at least one")
        checked[spec.name] = np.ascontiguousarray(_as_float(spec, array) if convert else array)
    return checked


_FLOATS = {np.dtype(np.float16), np.dtype(np.float32)}


def _fits(wanted: tuple[int | str, ...], shape: tuple[int, ...]) -> bool:
    """Say whether a shape has the rank and the fixed dimensions of an input's."""
    if len(shape) != len(wanted):
        return False
    for dim, size in zip(wanted, shape, strict=True):  # a loop: ``all`` over a generator takes three times as long
        if dim != size and not isinstance(dim, str):
            return False
    return True


def _as_float(spec: TensorSpec, array: Array) -> Array:
    if spec.dtype == "float16" and not np.abs(array).max() <= np.finfo(np.float16).max:
        raise UgsepError(
            f"input '{spec.name}' has a value beyond float16 (65504), which the engine computes in; scale it"
        )
    return array.astype(spec.dtype)

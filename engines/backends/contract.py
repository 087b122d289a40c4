"""The contract of a backend, and of the runners it loads; ``engines/backends/table.py`` lists the backends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from engines.backends.built_engine import BuiltEngine
from engines.backends.engine_spec import BuildSpec, Option

if TYPE_CHECKING:
    from export.lowering import LoweredGraph

Array = NDArray[Any]
Notify = Callable[[str], None]


@dataclass(frozen=True)
class Availability:
    """Whether this machine can build for a backend and run what it built, and the reason if it cannot."""

    can_build: bool
    can_run: bool
    reason: str = ""


@dataclass(frozen=True)
class Runtime:
    """What runs a backend's engines: the module to import, the package that brings it, and whether on GPUs alone.

    ``on_gpu``: it runs on NVIDIA GPUs and nowhere else.
    """

    module: str
    package: str
    on_gpu: bool = False


class Runner(Protocol):
    """A loaded engine; ``infer`` may be called from several threads at once."""

    def infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once; feeds and results by tensor name, rows first."""
        ...

    def close(self) -> None:
        """Release what the engine holds; ``infer`` must not be called afterwards."""
        ...


class DeviceArray(Protocol):
    """A tensor in a device's memory, made by one runner for others of the same ``memory``; otherwise opaque."""

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
    """A runner that can leave results on its device and read those of other runners with the same ``memory``.

    A user's state thus passes from the user engine to the item engine without a copy through the host.
    """

    @property
    def memory(self) -> str:
        """The runtime that owns the arrays, and its device: ``onnxruntime cuda:0``."""
        ...

    def infer(self, feeds: Mapping[str, Array | DeviceArray]) -> dict[str, Array]:
        """Run once; results are copied to the host."""
        ...

    def infer_on_device(self, feeds: Mapping[str, Array | DeviceArray]) -> dict[str, DeviceArray]:
        """Run once; results stay on the device and belong to the caller: no later run changes them."""
        ...


@runtime_checkable
class LazyRunner(Runner, Protocol):
    """A runner that reads some of its files when a request first needs them."""

    def preload(self) -> None:
        """Read them all now, so that the engine's folder may be replaced afterwards.

        Raises:
            UgsepError: a file is missing or broken, or the folder was replaced already.
        """
        ...


class Backend(Protocol):
    """What a backend's module defines at its top level."""

    @property
    def RUNTIME(self) -> Runtime:
        """What must be installed to run its engines, to be looked for without importing it."""
        ...

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
        """Report whether this machine can build and run; never raises, imports lazily."""
        ...

    def target(self) -> str:
        """Return what an engine built here is tied to: the ISA, the GPU, or ``any machine``; part of cache keys."""
        ...

    def lower(self, spec: BuildSpec, folder: Path, progress: Notify) -> LoweredGraph:
        """Write the graph into ``folder`` in the form the runtime runs fastest; refuse what cannot be built here."""
        ...

    def compile(self, spec: BuildSpec, lowered: LoweredGraph, out_dir: Path, progress: Notify) -> BuiltEngine:
        """Write the engine's files into ``out_dir``, read back what was compiled, fail if it is not as named.

        The files of ``lowered`` may be moved or rewritten. A backend may lower ``spec.onnx`` again, next to them, for
        variants that only a measurement or a first compilation asks for.
        """
        ...

    def load(
        self, directory: Path, built: BuiltEngine, threads: int | None = None, runtime_cache: Path | None = None
    ) -> Runner:
        """Load a built engine.

        ``threads`` replaces the pinned intra-op thread count on CPUs; ``runtime_cache`` is a file outside the bundle
        in which a backend that compiles kernels while serving may keep them for the next process.
        """
        ...

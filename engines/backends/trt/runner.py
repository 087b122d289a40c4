"""Run a TensorRT or TensorRT-RTX engine: buffers allocated once, one CUDA graph per set of input shapes.

What touches the device has been type-checked only, unless the tests marked ``gpu`` ran on this machine.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engines.backends.contract import Array, BuiltEngine, DeviceArray, Profile, TensorSpec, check_feeds
from engines.backends.tensors import check_loaded
from graphs.base.errors import UgsepError

if TYPE_CHECKING:
    import tensorrt  # TensorRT-RTX has the same runtime interface

#: CUDA graphs kept; further shapes run without one. Each holds device memory.
_MAX_GRAPHS = 64
#: Sizes per profile that candidates are padded to, so that requests of any size meet a recorded graph: at most 1/16
#: of a profile's largest size is computed for nothing.
_SIZES_PER_PROFILE = 16


def gpu() -> tuple[str | None, str]:
    """Return this machine's compute capability, or None and the reason why there is no usable GPU."""
    try:
        import torch
    except ImportError as error:
        return None, f"PyTorch, which holds an engine's device memory, is not installed ({error}); pip install torch"
    if torch.version.cuda is None:
        return None, "PyTorch is a CPU build; install one for CUDA on a machine with an NVIDIA GPU"
    if not torch.cuda.is_available():
        return None, "no NVIDIA driver or GPU found"
    major, minor = torch.cuda.get_device_capability()
    return f"{major}.{minor}", ""


def load_plan(
    trt: Any,
    name: str,
    directory: Path,
    built: BuiltEngine,
    make_context: Callable[[Any], tensorrt.IExecutionContext] = lambda engine: engine.create_execution_context(),
    on_close: Callable[[], None] = lambda: None,
) -> TensorRTRunner:
    """Deserialize ``<side>.engine`` and prepare its buffers; ``make_context(engine)`` is called once per profile.

    Raises:
        UgsepError: no usable GPU, one of another compute capability, or a plan the library refuses.
    """
    capability, reason = gpu()
    wanted = built.requires.get("compute_capability", "")
    if capability is None:
        raise UgsepError(f"{built.side} engine needs a GPU of compute capability {wanted}: {reason}")
    if not accepts(wanted, capability):
        raise UgsepError(
            f"{built.side} engine is for compute capability {wanted}, this GPU has {capability}; build it again here"
        )
    log = _error_log(trt)
    runtime: tensorrt.Runtime = trt.Runtime(log)
    if built.session.get("version_compatible"):
        runtime.engine_host_code_allowed = True  # such a plan carries its own runtime; hashes were checked before
    path = directory / f"{built.side}.engine"
    engine: tensorrt.ICudaEngine | None = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        said = log.errors[0].strip().splitlines()[0] if log.errors else "no reason given"
        raise UgsepError(
            f"{path}: {name} {trt.__version__} cannot load it ({said}), built with "
            f"{built.tools.get(name, 'unknown')}; build it again"
        )
    check_loaded(path, built, *_engine_io(trt, engine))
    return TensorRTRunner(runtime, engine, built, make_context, on_close)


def _error_log(trt: Any) -> Any:
    """Return a logger of the library's that keeps errors and prints nothing."""

    class Log(trt.ILogger):  # type: ignore[misc]  # of whichever library it is
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: tensorrt.ILogger.Severity, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                self.errors.append(message)

    return Log()


def _engine_io(trt: Any, engine: tensorrt.ICudaEngine) -> tuple[list[TensorSpec], list[TensorSpec]]:
    found: dict[Any, list[TensorSpec]] = {trt.TensorIOMode.INPUT: [], trt.TensorIOMode.OUTPUT: []}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        shape = tuple(dim if dim >= 0 else "?" for dim in _sizes(engine.get_tensor_shape(name)))
        dtype = np.dtype(trt.nptype(engine.get_tensor_dtype(name))).name
        found[engine.get_tensor_mode(name)].append(TensorSpec(name, dtype, shape))
    return found[trt.TensorIOMode.INPUT], found[trt.TensorIOMode.OUTPUT]


def _sizes(dims: tensorrt.Dims) -> tuple[int, ...]:
    return tuple(dims[axis] for axis in range(len(dims)))


def accepts(wanted: str, capability: str) -> bool:
    """Say whether a GPU of ``capability`` runs an engine for ``wanted``, a list like ``8.6,8.9`` or ``8.0+``."""
    here = tuple(map(int, capability.split(".")))
    for entry in filter(None, wanted.split(",")):
        least = tuple(map(int, entry.rstrip("+").split(".")))
        if here == least or (entry.endswith("+") and here > least):
            return True
    return False


@dataclass(frozen=True)
class TorchArray:
    """A tensor in GPU memory, opaque to all but TensorRT runners on that GPU."""

    tensor: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first."""
        return tuple(self.tensor.shape)

    @property
    def nbytes(self) -> int:
        """Bytes held on the GPU."""
        return int(self.tensor.nbytes)

    def numpy(self) -> Array:
        """Return a copy in host memory."""
        return np.array(self.tensor.cpu().numpy())


class TensorRTRunner:
    """One engine, one execution context per profile, a stream of its own; ``infer`` is serialized by a lock.

    Device buffers are sized for each profile's largest shapes and kept. Candidates are padded with rows of zeros to
    one of a few sizes per profile. The first call of a size runs the engine directly, the second also records a CUDA
    graph, later ones replay it.
    """

    def __init__(
        self,
        runtime: tensorrt.Runtime,
        engine: tensorrt.ICudaEngine,
        built: BuiltEngine,
        make_context: Callable[[Any], tensorrt.IExecutionContext],
        on_close: Callable[[], None],
    ) -> None:
        import torch

        self._torch: Any = torch
        self._runtime: tensorrt.Runtime | None = runtime
        self._engine: tensorrt.ICudaEngine | None = engine
        self._built, self._on_close = built, on_close
        self._lock = threading.Lock()
        self._memory = f"torch cuda:{torch.cuda.current_device()}"
        self._stream = self._torch.cuda.Stream()
        self._contexts: list[tensorrt.IExecutionContext] = []
        self._buffers: list[dict[str, Any]] = []
        self._graphs: dict[tuple[int, tuple[int, int]], Any] = {}
        for index, profile in enumerate(built.profiles):
            context = make_context(engine)
            context.set_optimization_profile_async(index, self._stream.cuda_stream)
            self._contexts.append(context)
            buffers = {
                spec.name: torch.empty(
                    [_largest(dim, profile) for dim in spec.shape], dtype=getattr(torch, spec.dtype), device="cuda"
                )
                for spec in (*built.inputs, *built.outputs)
            }
            self._buffers.append(buffers)
            for name, buffer in buffers.items():
                context.set_tensor_address(name, buffer.data_ptr())
        self._stream.synchronize()

    @property
    def memory(self) -> str:
        """The GPU whose memory results stay in; TensorRT and TensorRT-RTX runners share it."""
        return self._memory

    def infer(self, feeds: Mapping[str, Array | DeviceArray]) -> dict[str, Array]:
        """Copy feeds to the device, run, copy results back; raises UgsepError for rows beyond every profile."""
        return self._call(feeds, lambda result: np.array(result.cpu().numpy()))

    def infer_on_device(self, feeds: Mapping[str, Array | DeviceArray]) -> dict[str, DeviceArray]:
        """Run and leave a copy of the results on the device; errors as ``infer``."""
        return self._call(feeds, lambda result: TorchArray(result.clone()))

    def close(self) -> None:
        """Release contexts, graphs, buffers and the engine."""
        with self._lock:
            if self._engine is not None:
                self._on_close()
            self._graphs.clear()
            self._contexts.clear()
            self._buffers.clear()
            self._engine = self._runtime = None

    def _call(self, feeds: Mapping[str, Array | DeviceArray], take: Callable[[Any], Any]) -> dict[str, Any]:
        if self._engine is None:
            raise UgsepError("the engine is closed; load it again")
        host, there = place_feeds(self._built, feeds)
        rows = _row_counts(self._built, {n: value.shape for n, value in (*host.items(), *there.items())})
        index = choose_profile(self._built.profiles, rows, self._built.side)
        padded = (rows[0], padded_candidates(self._built.profiles[index], rows[1]))
        torch, context, buffers = self._torch, self._contexts[index], self._buffers[index]
        given = {n: torch.from_numpy(a if a.flags.writeable else a.copy()) for n, a in host.items()} | there
        with self._lock, torch.cuda.stream(self._stream):
            for spec in self._built.inputs:
                value = given[spec.name]
                count = padded[1] if spec.shape[0] == "candidates" else value.shape[0]
                buffer = buffers[spec.name][:count]  # rows first, so the first rows are what the engine reads
                buffer[: value.shape[0]].copy_(value, non_blocking=True)
                buffer[value.shape[0] :].zero_()
                context.set_input_shape(spec.name, tuple(buffer.shape))
            self._run(index, padded, context)
            results = {}
            for spec in self._built.outputs:
                shape = _sizes(context.get_tensor_shape(spec.name))
                filled = buffers[spec.name].flatten()[: int(np.prod(shape))].view(shape)
                results[spec.name] = take(filled[: rows[1]] if spec.shape[0] == "candidates" else filled)
            # What stays on the device is read by another runner's stream: finish it before it is handed out.
            self._stream.synchronize()
        return results

    def _run(self, index: int, rows: tuple[int, int], context: tensorrt.IExecutionContext) -> None:
        key = (index, rows)
        graph = self._graphs.get(key)
        if graph is not None:
            graph.replay()
            return
        self._execute(context)  # also settles what the library does lazily after a change of shapes
        if key not in self._graphs:
            if len(self._graphs) < _MAX_GRAPHS:
                self._graphs[key] = None
            return
        recorded = self._torch.cuda.CUDAGraph()
        # Only this thread's calls are recorded: another runner may copy and allocate in its own at the same moment.
        with self._torch.cuda.graph(recorded, stream=self._stream, capture_error_mode="thread_local"):
            self._execute(context)
        self._graphs[key] = recorded

    def _execute(self, context: tensorrt.IExecutionContext) -> None:
        if not context.execute_async_v3(self._stream.cuda_stream):
            raise UgsepError(f"the {self._built.side} engine failed to run; check its inputs and the GPU's memory")


def choose_profile(profiles: tuple[Profile, ...], rows: tuple[int, int], side: str) -> int:
    """Return the profile that fits (users, candidates) and is tuned closest to it.

    Raises:
        UgsepError: the rows are outside every profile.
    """
    users, candidates = rows
    fits = [
        (abs(p.candidates.opt - candidates), i)
        for i, p in enumerate(profiles)
        if p.users.min <= users <= p.users.max and p.candidates.min <= candidates <= p.candidates.max
    ]
    if not fits:
        most = max(profiles, key=lambda p: p.candidates.max)
        raise UgsepError(
            f"{users} users and {candidates} candidates are outside the {side} engine's profiles (at most "
            f"{most.users.max} users, {most.candidates.max} candidates); send less at once or build larger profiles"
        )
    return min(fits)[1]


def padded_candidates(profile: Profile, candidates: int) -> int:
    """Return the size to run ``candidates`` rows at: the next of 16 equal steps up to the profile's largest."""
    step = -(-profile.candidates.max // _SIZES_PER_PROFILE)
    return min(-(-candidates // step) * step, profile.candidates.max)


def place_feeds(
    built: BuiltEngine, feeds: Mapping[str, Array | DeviceArray]
) -> tuple[dict[str, Array], dict[str, Any]]:
    """Return checked host arrays, and the tensors that are on the device already in the engine's dtype.

    Raises:
        UgsepError: as ``check_feeds``.
    """
    dtypes = {spec.name: spec.dtype for spec in built.inputs}
    there = {
        name: value.tensor
        for name, value in feeds.items()
        if isinstance(value, TorchArray) and str(value.tensor.dtype).removeprefix("torch.") == dtypes.get(name)
    }
    for spec in built.inputs:
        shape = tuple(there[spec.name].shape) if spec.name in there else spec.shape
        fits = len(shape) == len(spec.shape) and all(
            isinstance(want, str) or want == got for want, got in zip(spec.shape, shape, strict=True)
        )
        if not fits:
            takes = ", ".join(map(str, spec.shape))
            raise UgsepError(f"input '{spec.name}' is {list(shape)} on the device; the engine takes [{takes}]")
    rest = tuple(spec for spec in built.inputs if spec.name not in there)
    host = {n: v if isinstance(v, np.ndarray) else v.numpy() for n, v in feeds.items() if n not in there}
    return check_feeds(rest, host), there


def _row_counts(built: BuiltEngine, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
    """Return the rows of the two dynamic axes; an axis the engine does not have counts as the profile's least."""
    found: dict[str, int] = {}
    for spec in built.inputs:
        for dim, size in zip(spec.shape, shapes[spec.name], strict=True):
            if isinstance(dim, str) and found.setdefault(dim, size) != size:
                raise UgsepError(f"input '{spec.name}' has {size} rows of '{dim}', other inputs {found[dim]}")
    least = built.profiles[0]
    return found.get("users", least.users.min), found.get("candidates", least.candidates.min)


def _largest(dim: int | str, profile: Profile) -> int:
    if isinstance(dim, int):
        return dim
    return profile.users.max if dim == "users" else profile.candidates.max

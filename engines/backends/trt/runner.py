"""Run a TensorRT or TensorRT-RTX engine: buffers allocated once, one CUDA graph per set of input shapes.

What touches the device has been type-checked only, unless the tests marked ``gpu`` ran on this machine.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from engines.backends.built_engine import BuiltEngine
from engines.backends.contract import Array, DeviceArray
from engines.backends.trt.device_array import TorchArray, place_feeds
from engines.backends.trt.profiles import axis_rows, choose_profile, largest, padded_candidates
from graphs.base.errors import UgsepError

if TYPE_CHECKING:
    import tensorrt  # TensorRT-RTX has the same runtime interface

#: CUDA graphs kept; further shapes run without one. Each holds device memory.
_MAX_GRAPHS = 64


class TensorRTRunner:
    """One engine with its own stream and an execution context per profile; a lock serializes ``infer``.

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
                    [largest(dim, profile) for dim in spec.shape], dtype=getattr(torch, spec.dtype), device="cuda"
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
        rows = axis_rows(self._built, {n: value.shape for n, value in (*host.items(), *there.items())})
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
                shape = sizes(context.get_tensor_shape(spec.name))
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
        self._execute(context)  # also triggers the library's deferred work after a change of shapes
        if key not in self._graphs:
            if len(self._graphs) < _MAX_GRAPHS:
                self._graphs[key] = None
            return
        recorded = self._torch.cuda.CUDAGraph()
        # Only this thread's calls are recorded: another runner may copy and allocate in its own at the same time.
        with self._torch.cuda.graph(recorded, stream=self._stream, capture_error_mode="thread_local"):
            self._execute(context)
        self._graphs[key] = recorded

    def _execute(self, context: tensorrt.IExecutionContext) -> None:
        if not context.execute_async_v3(self._stream.cuda_stream):
            raise UgsepError(f"the {self._built.side} engine failed to run; check its inputs and the GPU's memory")


def sizes(dims: tensorrt.Dims) -> tuple[int, ...]:
    """Return the dimensions of a library shape."""
    return tuple(dims[axis] for axis in range(len(dims)))

"""An ONNX Runtime session on a device: inputs and outputs bound there, results left there for the next engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from engines.backends.built_engine import BuiltEngine
from engines.backends.checks import check_feeds
from engines.backends.contract import Array, DeviceArray
from engines.backends.onnxruntime.session import failed_run
from graphs.base.errors import UgsepError


@dataclass(frozen=True)
class OrtArray:
    """An OrtValue on a device, opaque to all but sessions on that device."""

    value: Any
    nbytes: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first."""
        return tuple(self.value.shape())

    def numpy(self) -> Array:
        """Return a copy in host memory."""
        return np.array(self.value.numpy())


class BoundRunner:
    """One session on one device; ``infer`` may be called from several threads; each call binds its own buffers.

    ``device``: ``cuda``, or ``cpu``, for the same bindings on host memory.
    """

    def __init__(self, session: Any, built: BuiltEngine, device: str, index: int) -> None:
        self._session, self._built = session, built
        self._device, self._index = device, index

    @property
    def memory(self) -> str:
        """Which memory results stay in; sessions of one process share it."""
        return f"onnxruntime {self._device}:{self._index}"

    def infer(self, feeds: Mapping[str, Array | DeviceArray]) -> dict[str, Array]:
        """Run once and copy the results to the host; raises UgsepError for wrong feeds or after ``close``."""
        return {name: array.numpy() for name, array in self.infer_on_device(feeds).items()}

    def infer_on_device(self, feeds: Mapping[str, Array | DeviceArray]) -> dict[str, DeviceArray]:
        """Run once; the results stay on the device. Errors as ``infer``."""
        session = self._session
        if session is None:
            raise UgsepError("the engine is closed; load it again")
        there = self._already_there(feeds)
        rest = tuple(spec for spec in self._built.inputs if spec.name not in there)
        host = {n: v if isinstance(v, np.ndarray) else v.numpy() for n, v in feeds.items() if n not in there}
        checked = check_feeds(rest, host)
        binding = session.io_binding()
        for name, value in there.items():
            binding.bind_ortvalue_input(name, value)
        for name, array in checked.items():
            binding.bind_cpu_input(name, array)
        for spec in self._built.outputs:
            binding.bind_output(spec.name, self._device, self._index)
        try:
            session.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime has one exception class per status code
            raise failed_run(self._built.side, error) from error
        values = zip(self._built.outputs, binding.get_outputs(), strict=True)
        return {spec.name: OrtArray(value, int(value.tensor_size_in_bytes())) for spec, value in values}

    def close(self) -> None:
        """Release the session; arrays it left on the device live on until they are dropped."""
        self._session = None

    def _already_there(self, feeds: Mapping[str, Array | DeviceArray]) -> dict[str, Any]:
        """Return the OrtValues among the feeds that can be bound as they are: of the engine's dtype and sizes."""
        found: dict[str, Any] = {}
        for spec in self._built.inputs:
            given = feeds.get(spec.name)
            if not isinstance(given, OrtArray) or _dtype(given.value) != spec.dtype:
                continue
            fixed = len(given.shape) == len(spec.shape) and all(
                isinstance(want, str) or want == got for want, got in zip(spec.shape, given.shape, strict=True)
            )
            if not fixed:
                takes = ", ".join(map(str, spec.shape))
                raise UgsepError(
                    f"input '{spec.name}' is {list(given.shape)} on the device; the engine takes [{takes}]"
                )
            found[spec.name] = given.value
        return found


def _dtype(value: Any) -> str:
    kind = str(value.data_type()).removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(kind, kind)

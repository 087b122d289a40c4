"""Tensors in GPU memory, and the feeds of a call on the host and on the GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from engines.backends.built_engine import BuiltEngine
from engines.backends.checks import check_feeds
from engines.backends.contract import Array, DeviceArray
from graphs.base.errors import UgsepError


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

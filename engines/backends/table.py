"""The backends by name: a new one is one folder and one row here."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from engines.backends.contract import Backend
from graphs.base.errors import UgsepError, nearest

__all__ = ["backend_names", "find_backend"]


def _onnxruntime() -> Backend:
    from engines.backends.onnxruntime import backend

    return backend


def _onnxruntime_gpu() -> Backend:
    from engines.backends.onnxruntime_gpu import backend

    return backend


def _openvino() -> Backend:
    from engines.backends.openvino import backend

    return backend


def _tensorrt() -> Backend:
    from engines.backends.tensorrt import backend

    return backend


def _tensorrt_rtx() -> Backend:
    from engines.backends.tensorrt_rtx import backend

    return backend


#: A function per backend, so that a module is imported only if it is used, and mypy checks it against the protocol.
BACKENDS: Mapping[str, Callable[[], Backend]] = {
    "onnxruntime": _onnxruntime,
    "onnxruntime-gpu": _onnxruntime_gpu,
    "openvino": _openvino,
    "tensorrt": _tensorrt,
    "tensorrt-rtx": _tensorrt_rtx,
}


def backend_names() -> tuple[str, ...]:
    """Return the names of all backends, sorted; nothing is imported."""
    return tuple(sorted(BACKENDS))


def find_backend(name: str) -> Backend:
    """Return a backend by name.

    Raises:
        UgsepError: unknown name; the message has the nearest one.
    """
    if name not in BACKENDS:
        raise UgsepError(f"unknown backend '{name}'{nearest(name, backend_names())}")
    return BACKENDS[name]()

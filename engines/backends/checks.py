"""Checks that all backends share: precisions, build options, the feeds of a call, and a loaded engine's tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from engines.backends.built_engine import BuiltEngine, TensorSpec
from engines.backends.contract import Array, Backend
from engines.backends.engine_spec import Option
from graphs.base.errors import UgsepError, nearest
from graphs.base.json_words import named_type, shown


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
            want = f"{named_type(type(defaults[key]))}, like {shown(defaults[key])}"
            raise UgsepError(f"backend '{name}': option '{key}' is {shown(value)}; give {want}")
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
        wanted = np.dtype(
            spec.dtype
        )  # not by name: NumPy builds that string on each access, which takes microseconds
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
    """Check that a shape has the rank and the fixed dimensions of an input."""
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


def check_loaded(
    where: object, built: BuiltEngine, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> None:
    """Compare names, dtypes and fixed dimensions of a loaded engine with its record.

    Raises:
        UgsepError: they differ; both are printed.
    """
    for what, listed, found in (("input", built.inputs, inputs), ("output", built.outputs, outputs)):
        names, loaded = [spec.name for spec in listed], {spec.name: spec for spec in found}
        if set(names) != set(loaded):
            raise UgsepError(
                f"{where}: {what}s are {', '.join(loaded)} but the manifest says {', '.join(names)}; "
                "build the bundle again"
            )
        for spec in listed:
            if not _agree(spec, loaded[spec.name], exact=what == "input"):
                raise UgsepError(
                    f"{where}: {what} '{spec.name}' is {_text(loaded[spec.name])} but the manifest says "
                    f"{_text(spec)}; build the bundle again"
                )


def _agree(listed: TensorSpec, loaded: TensorSpec, exact: bool) -> bool:
    """Check that a tensor is as listed; a runtime may know a size of an output that is dynamic in the graph."""
    if listed.dtype != loaded.dtype or len(listed.shape) != len(loaded.shape):
        return False
    pairs = zip(listed.shape, loaded.shape, strict=True)
    return all(a == b or isinstance(b, str) or (isinstance(a, str) and not exact) for a, b in pairs)


def _text(spec: TensorSpec) -> str:
    return f"{spec.dtype}[{', '.join(map(str, spec.shape))}]"

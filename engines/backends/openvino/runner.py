"""Load and run an engine on OpenVINO; imports no ONNX tooling."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from engines.backends.built_engine import BuiltEngine, TensorSpec
from engines.backends.checks import check_feeds, check_loaded
from engines.backends.contract import Array
from engines.backends.openvino.library import RUNS_AS, core, runs_as
from graphs.base.errors import UgsepError

_INT32 = np.iinfo(np.int32)


def load(
    directory: Path, built: BuiltEngine, threads: int | None = None, runtime_cache: Path | None = None
) -> OpenVinoRunner:
    """Compile the IR with the pinned settings.

    Raises:
        UgsepError: openvino is missing, a file is missing or broken, this CPU has no GEMMs of the precision, or the
            tensors are not those the manifest names.
    """
    openvino = core()
    session = dict(built.session)
    if threads is not None:
        session["INFERENCE_NUM_THREADS"] = threads
    file = directory / f"{built.side}.xml"
    try:
        compiled = openvino.compile_model(str(file), "CPU", session)
    except Exception as error:  # openvino raises RuntimeError or its own classes
        raise UgsepError(f"{file}: OpenVINO cannot load it ({last_line(error)}); build the bundle again") from error
    computes_in = runs_as(compiled)
    if computes_in != RUNS_AS[built.precision]:
        raise UgsepError(
            f"{file}: built for {built.precision} ({RUNS_AS[built.precision]}), this CPU would run {computes_in}; "
            "build the bundle again here"
        )
    check_loaded(file, built, ports(built.inputs, compiled.inputs), ports(built.outputs, compiled.outputs))
    return OpenVinoRunner(compiled, built)


class OpenVinoRunner:
    """One compiled model, and as many inference requests as calls of ``infer`` ever ran at once.

    Not one per thread: each holds the buffers of a whole run, and a server may call from a hundred threads in turn.
    """

    def __init__(self, compiled: Any, built: BuiltEngine) -> None:
        self._compiled, self._built = compiled, built
        self._idle: list[Any] = []  # append and pop are atomic
        self._ids = [spec.name for spec in built.inputs if spec.dtype == "int64"]

    def infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once; raises UgsepError for wrong feeds, ids beyond 32 bits, or after ``close``."""
        if self._compiled is None:
            raise UgsepError("the engine is closed; load it again")
        checked = check_feeds(self._built.inputs, feeds)
        for name in self._ids:
            _check_ids(name, checked[name])
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        try:
            results = request.infer(checked, share_inputs=True)
            # Copies: the request's own output buffers are overwritten by its next run.
            return {spec.name: np.array(results[i]) for i, spec in enumerate(self._built.outputs)}
        except Exception as error:  # openvino raises RuntimeError or its own classes
            raise UgsepError(f"the {self._built.side} engine refused these inputs ({last_line(error)})") from error
        finally:
            if self._compiled is not None:
                self._idle.append(request)

    def close(self) -> None:
        """Release the compiled model."""
        self._compiled, self._idle = None, []


def _check_ids(name: str, ids: Array) -> None:
    """Refuse what OpenVINO would cut: its CPU plugin computes in int32 whatever the type of an input is."""
    if ids.max() > _INT32.max or ids.min() < _INT32.min:
        raise UgsepError(
            f"input '{name}' holds an id beyond 32 bits, which OpenVINO cuts; serve one of backend 'onnxruntime'"
        )


def ports(listed: tuple[TensorSpec, ...], ports: Any) -> tuple[TensorSpec, ...]:
    """Return inputs or outputs of a compiled model; a port may have several names, one of them is the graph's."""
    hoped = [spec.name for spec in listed] if len(listed) == len(ports) else [""] * len(ports)
    return tuple(
        TensorSpec(
            name if name in port.get_names() else str(port.get_any_name()),
            str(port.get_element_type().to_dtype().name),
            tuple(d.get_length() if d.is_static else "?" for d in port.get_partial_shape()),
        )
        for name, port in zip(hoped, ports, strict=True)
    )


def last_line(error: Exception) -> str:
    """Return the last line of an OpenVINO error: the first ones name its own source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__

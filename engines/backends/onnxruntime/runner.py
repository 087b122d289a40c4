"""Load and run an engine on ONNX Runtime; imports no ONNX tooling."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from engines.backends.built_engine import BuiltEngine
from engines.backends.checks import check_feeds, check_loaded
from engines.backends.contract import Array, Runner
from engines.backends.engine_spec import Option
from engines.backends.host import host_isa
from engines.backends.onnxruntime.session import (
    EXACT_INT8,
    failed_run,
    import_onnxruntime,
    int8_settings,
    session_io,
    start_session,
)
from engines.backends.onnxruntime.variants import (
    ANY,
    FEW_ROWS,
    ONE_USER,
    VariantRunner,
    broadcasting_io,
    gathering_io,
    has_one_user_variant,
    variant_file,
)
from graphs.base.errors import UgsepError


def load(
    directory: Path, built: BuiltEngine, threads: int | None = None, runtime_cache: Path | None = None
) -> Runner:
    """Start a session with the pinned options; of several variants, the one for one user and the usual rows.

    The graph optimised at build time is used if the bundle has one made on a CPU like this; otherwise the portable
    graph, which is always there.

    Raises:
        UgsepError: onnxruntime is missing, a file is missing or broken, or the engine's inputs are not those
            the manifest names.
    """
    ort = import_onnxruntime()
    session = {k: v for k, v in built.session.items() if k != EXACT_INT8} | int8_settings()
    if threads is not None:
        session["intra_op_num_threads"] = threads
    both = has_one_user_variant(built)
    variants: dict[str, Callable[[], Runner]] = {
        ANY: partial(_load_whole, ort, directory, gathering_io(built) if both else built, session)
    }
    for variant in (ONE_USER, FEW_ROWS):
        name = variant_file(built.side, variant)
        if name in built.files:
            takes = broadcasting_io(built) if both else built
            variants[variant] = partial(_started, ort, directory / name, takes, session)
    if len(variants) == 1:
        return variants[ANY]()
    return VariantRunner(variants, ONE_USER if both else ANY, built, [directory / name for name in built.files])


def _load_whole(ort: Any, directory: Path, built: BuiltEngine, session: Mapping[str, Option]) -> CpuRunner:
    portable = directory / f"{built.side}.onnx"
    optimised = directory / f"{built.side}.optimised.onnx"
    same_host = built.requires.get("isa") == host_isa() and built.tools.get("onnxruntime") == ort.__version__
    if optimised.name in built.files and same_host:
        return _started(ort, optimised, built, {**session, "graph_optimization_level": "disabled"})
    return _started(ort, portable, built, session)


def _started(ort: Any, file: Path, built: BuiltEngine, session: Mapping[str, Option]) -> CpuRunner:
    loaded = start_session(ort, file, session)
    check_loaded(file, built, *session_io(loaded))
    return CpuRunner(loaded, built)


class CpuRunner:
    """One ONNX Runtime session; ``infer`` may be called from several threads."""

    def __init__(self, session: Any, built: BuiltEngine) -> None:
        self._session, self._side = session, built.side
        self._inputs = built.inputs
        self._outputs = [spec.name for spec in built.outputs]

    def infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once; raises UgsepError for wrong feeds, an id outside its table, or after ``close``."""
        session = self._session
        if session is None:
            raise UgsepError("the engine is closed; load it again")
        checked = check_feeds(self._inputs, feeds)
        try:
            results = session.run(self._outputs, checked)
        except Exception as error:  # onnxruntime has one exception class per status code
            raise failed_run(self._side, error) from error
        return dict(zip(self._outputs, results, strict=True))

    def close(self) -> None:
        """Release the session."""
        self._session = None

"""ONNX Runtime sessions: started with pinned settings, their inputs and outputs, their errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engines.backends.built_engine import TensorSpec
from engines.backends.contract import Availability, Runtime
from engines.backends.engine_spec import Option
from engines.backends.host import host_isa
from graphs.base.errors import UgsepError, first_line

#: Folds DequantizeLinear(constant) to float when the session starts. Both are needed: the first lets constants
#: fold through DequantizeLinear, the second keeps the runtime from fusing some int8 GEMMs and not others.
FOLD_INT8 = "session.disable_quant_qdq"


_NO_FUSION_BY_CHANCE = "QDQSelectorActionTransformer"


#: Fuses a sum into the layer norm after it; the fused kernel takes several times as long as the two it replaces.
_SLOW_FUSION = "SkipLayerNormFusion"


#: Without it, x86 CPUs that have no int8 dot product add pairs of products in 16 bits, which saturate; with it, those
#: that have one take longer.
EXACT_INT8 = "session.x64quantprecision"


_INT8_DOT_PRODUCTS = frozenset({"avx512_vnni", "avx_vnni", "asimddp"})


_DTYPES = {"float": "float32", "double": "float64"}  # the types whose names differ from NumPy's


def session_io(session: Any) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return the inputs and outputs of a session; dynamic axes by name, or ``?`` if unnamed."""
    return tuple(map(_tensor, session.get_inputs())), tuple(map(_tensor, session.get_outputs()))


def _tensor(node: Any) -> TensorSpec:
    kind = node.type.removeprefix("tensor(").removesuffix(")")  # tensor(float)
    shape = tuple(dim if isinstance(dim, int) else str(dim or "?") for dim in node.shape)
    return TensorSpec(node.name, _DTYPES.get(kind, kind), shape)


def failed_run(side: str, error: Exception) -> UgsepError:
    """Return a session's error on bad inputs as one line; most often an id beyond the end of its table."""
    line = first_line(error)
    return UgsepError(
        f"the {side} engine refused these inputs ({line}); check that ids lie within their vocabularies"
    )


def import_onnxruntime() -> Any:
    """Return the onnxruntime module.

    Raises:
        UgsepError: it is not installed.
    """
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise UgsepError("backend 'onnxruntime' needs onnxruntime; pip install 'ugsep[cpu]'") from error
    return ort


def pinned_settings(options: Mapping[str, Option]) -> dict[str, Option]:
    """Return the session settings that a build pins in the manifest."""
    return {
        "graph_optimization_level": "all",
        "intra_op_num_threads": options["threads"],
        "inter_op_num_threads": 1,
        "session.intra_op.allow_spinning": "1" if options["spinning"] else "0",
        FOLD_INT8: "1",
        **int8_settings(),
        "disabled_optimizers": f"{_NO_FUSION_BY_CHANCE} {_SLOW_FUSION}",
    }


def plain_settings(threads: int) -> dict[str, Option]:
    """Return the settings of a session that runs a graph as the runtime does by default, with pinned threads."""
    return {"intra_op_num_threads": threads, "inter_op_num_threads": 1}


def int8_settings() -> dict[str, Option]:
    """Return the session setting that int8 products need to be exact on this CPU."""
    # Not host(): that is the nearest known microarchitecture, whose features may be fewer than this CPU's.
    from archspec.cpu.detect import detected_info

    return {} if _INT8_DOT_PRODUCTS & set(detected_info().features) else {EXACT_INT8: "1"}


def start_session(
    ort: Any,
    graph: Path | bytes,
    session: Mapping[str, Option],
    optimised: Path | None = None,
    providers: Sequence[str | tuple[str, Mapping[str, str]]] = ("CPUExecutionProvider",),
    weights: Path | None = None,
) -> Any:
    """Start a session with pinned settings.

    Args:
        ort: the onnxruntime module.
        graph: an ONNX file, or a serialized model.
        session: settings by the runtime's own names; ``provider``, ``device`` and ``use_tf32`` are not its own.
        optimised: where to write the graph as the runtime optimised it.
        providers: execution providers in order, each with its options.
        weights: the folder of a serialized model's external data.

    Raises:
        UgsepError: the file is missing, broken or refused; the runtime's first line is quoted.
    """
    options = ort.SessionOptions()
    levels = ort.GraphOptimizationLevel
    options.log_severity_level = 4  # errors are raised, once, as one line
    for key, value in session.items():
        if key == "graph_optimization_level":
            options.graph_optimization_level = levels.ORT_ENABLE_ALL if value == "all" else levels.ORT_DISABLE_ALL
        elif key in ("intra_op_num_threads", "inter_op_num_threads"):
            setattr(options, key, value)
        elif key not in ("disabled_optimizers", "provider", "device", "use_tf32"):
            options.add_session_config_entry(key, str(value))
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
        # Folded weights may exceed the 2 GB of one protobuf message: keep them in a file next to the graph.
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", f"{optimised.name}.data"
        )
    if weights is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(weights))
    disabled = str(session.get("disabled_optimizers", "")).split() or None
    try:
        return ort.InferenceSession(graph, options, providers=list(providers), disabled_optimizers=disabled)
    except Exception as error:  # onnxruntime has one exception class per status code
        name = "the graph" if isinstance(graph, bytes) else graph
        raise UgsepError(
            f"{name}: onnxruntime cannot load it ({first_line(error)}); build the bundle again"
        ) from error


NAME = "onnxruntime"
RUNTIME = Runtime("onnxruntime", "onnxruntime")


ONNX_VARIANT = {"fp32": "fp32", "w8a32": "w8a32", "w8a8-dynamic": "w8a32", "w8a8-static": "w8a32"}


#: ``threads``: intra-op threads. ``spinning``: idle threads spin, which lowers latency by microseconds and
#: burns a core per thread. ``save_optimized``: also keep the runtime's optimised graph, for this CPU only.
OPTIONS: dict[str, Option] = {"threads": 1, "spinning": False, "save_optimized": False}


def probe() -> Availability:
    """Check for onnxruntime."""
    try:
        import onnxruntime as ort
    except ImportError as error:
        return Availability(False, False, f"{error}; pip install 'ugsep[cpu]'")
    return Availability(True, True, f"onnxruntime {ort.__version__}, CPU")


def target() -> str:
    """Return this CPU's microarchitecture: the graph is read back, and may be kept, as optimised for it."""
    return host_isa()

"""ONNX Runtime on CPUs: the graph lowered for CPUs, session options pinned, what it compiled read back."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import onnx

from engines.backends.contract import (
    Array,
    Availability,
    BuildSpec,
    BuiltEngine,
    EngineWeight,
    Option,
    Progress,
    Runner,
    TensorSpec,
    check_feeds,
    check_options,
    usual_rows,
)
from engines.backends.graph_io import graph_io, read_graph
from engines.backends.onnxruntime.autotune import RowForms, UserForms, measure_row_forms, measure_user_forms
from engines.backends.onnxruntime.variants import (
    ANY,
    FEW_ROWS,
    ONE_USER,
    FormRunner,
    broadcasting_form,
    cut_profiles,
    form_file,
    gathering_form,
    has_both_forms,
    row_axis,
    with_both_forms,
)
from engines.backends.onnxruntime.weight_status import check_weight_statuses, weight_statuses
from engines.backends.tensors import check_loaded
from export.lowering.passes import Int8Gemms, LoweredGraph, lower_for_cpu, lower_for_one_user
from graphs.base.errors import UgsepError

NAME = "onnxruntime"
ONNX_VARIANT = {"fp32": "fp32", "w8a32": "w8a32", "w8a8-dynamic": "w8a32"}
#: ``threads``: intra-op threads. ``spinning``: idle threads spin, which lowers latency by microseconds and
#: burns a core per thread. ``save_optimized``: also keep the runtime's optimised graph, for this CPU only.
OPTIONS: dict[str, Option] = {"threads": 1, "spinning": False, "save_optimized": False}

#: Folds DequantizeLinear(constant) to float when the session starts. Both are needed: the first lets constants
#: fold through DequantizeLinear, the second keeps the runtime from fusing int8 GEMMs where it likes.
FOLD_INT8 = "session.disable_quant_qdq"
_NO_FUSION_BY_CHANCE = "QDQSelectorActionTransformer"
#: Fuses a sum into the layer norm after it; the fused kernel takes several times as long as the two it replaces.
_SLOW_FUSION = "SkipLayerNormFusion"
#: Without it, x86 CPUs that have no int8 dot product add pairs of products in 16 bits, which saturate; with it, those
#: that have one take longer.
_EXACT_INT8 = "session.x64quantprecision"
_INT8_DOT_PRODUCTS = frozenset({"avx512_vnni", "avx_vnni", "asimddp"})

_DTYPES = {"float": "float32", "double": "float64"}  # the types whose names differ from NumPy's

#: One FP32 GEMM per token beats one batched MatMul from 4 rows on (1.0 to 2.4 times, tokens 8 and 16, widths 64 to
#: 768); with fewer rows only for weights of at least this many elements per token, below that nodes cost more. Rows
#: rounded to int8 want weights below it batched at any number of rows: rounding takes six nodes.
_ROWS_THAT_PAY = 4
_SMALL_TOKEN_WEIGHT = 1 << 17
#: int8 GEMMs for few rows, which MatMulNBits packs its weight for, and for many. Where one gives way to the other is
#: measured: on CPUs with int8 dot products at 8 to 16 rows.
_FEW_ROWS_GEMMS: Int8Gemms = "matmul-nbits"
_MANY_ROWS_GEMMS: Int8Gemms = "integer-rows"


def probe() -> Availability:
    """Can ONNX Runtime be imported here."""
    try:
        import onnxruntime as ort
    except ImportError as error:
        return Availability(False, False, f"{error}; pip install 'ugsep[cpu]'")
    return Availability(True, True, f"onnxruntime {ort.__version__}, CPU")


def target() -> str:
    """Return this CPU's microarchitecture: the graph is read back, and may be kept, as optimised for it."""
    return host_isa()


def build(spec: BuildSpec, out_dir: Path, progress: Progress) -> BuiltEngine:
    """Lower the graph for CPUs into ``<side>.onnx`` and check what ONNX Runtime makes of each weight.

    Raises:
        UgsepError: onnxruntime is missing, an option is unknown, or a weight does not run as the precision says.
    """
    ort = _import()
    options = check_options(NAME, spec.options, OPTIONS)
    session = _session_settings(options)
    started = time.perf_counter()
    file = out_dir / f"{spec.side}.onnx"
    if file.resolve() == spec.onnx.resolve():
        raise UgsepError(f"{file}: the engine would overwrite the graph it is built from; give another directory")
    original = read_graph(spec.onnx)
    progress(f"onnxruntime: lowering {spec.side} for the CPU ({spec.precision})")
    if spec.precision == "w8a8-dynamic":
        lowered = lower_for_cpu(spec.onnx, file, _MANY_ROWS_GEMMS, _SMALL_TOKEN_WEIGHT)
    else:
        few_rows = usual_rows(spec) < _ROWS_THAT_PAY
        lowered = lower_for_cpu(spec.onnx, file, "keep", _SMALL_TOKEN_WEIGHT if few_rows else 0)
    progress(f"onnxruntime: reading back the optimised {spec.side} graph")
    loaded, statuses, nodes = _read_back(ort, spec, original, lowered, session)
    inputs, outputs = graph_io(read_graph(file))
    measured: list[RowForms | UserForms] = []
    graphs, profiles = [file.name], spec.profiles
    if spec.precision == "w8a8-dynamic" and lowered.fused:
        progress(f"onnxruntime: measuring which int8 GEMMs suit how many rows of the {spec.side} graph")
        few = lower_for_cpu(spec.onnx, out_dir / form_file(spec.side, FEW_ROWS), _FEW_ROWS_GEMMS)
        few_loaded, _, _ = _read_back(ort, spec, original, few, session)
        pair = (_FEW_ROWS_GEMMS, few_loaded), (_MANY_ROWS_GEMMS, loaded)
        rows = measure_row_forms(*pair, inputs, row_axis(spec.side), usual_rows(spec))
        measured.append(rows)
        if 0 < rows.few_up_to < usual_rows(spec):
            graphs.append(few.path.name)
            profiles = cut_profiles(spec.side, profiles, rows.few_up_to)
        else:
            _remove(few.path)
        if rows.few_up_to >= usual_rows(spec):
            _remove(file)
            lowered = lower_for_cpu(spec.onnx, file, _FEW_ROWS_GEMMS)
            loaded, statuses, nodes = _read_back(ort, spec, original, lowered, session)
    one_user = _add_one_user_form(ort, file, loaded, inputs, spec, session)
    if one_user is not None:
        measured.append(one_user)
        graphs += [form_file(spec.side, ONE_USER)] if one_user.pays else []
    requires: dict[str, str] = {}
    if options["save_optimized"]:
        requires["isa"] = host_isa()
        start_session(ort, file, session, out_dir / f"{spec.side}.optimised.onnx")
        graphs.append(f"{spec.side}.optimised.onnx")
    files = [name for graph in graphs for name in (graph, f"{graph}.data") if (out_dir / name).exists()]
    built = BuiltEngine(
        backend=NAME,
        side=spec.side,
        precision=spec.precision,
        files=tuple(files),
        bytes=sum((out_dir / name).stat().st_size for name in files),
        inputs=inputs,
        outputs=outputs,
        session=session,
        requires=requires,
        tools={"onnxruntime": ort.__version__, "onnx": onnx.__version__},
        profiles=profiles,
        weights=statuses,
        figures={
            "build_seconds": time.perf_counter() - started,
            "nodes": float(nodes),
            **{name: value for forms in measured for name, value in forms.figures().items()},
        },
        notes=tuple(map(str, measured)),
    )
    return with_both_forms(built) if one_user is not None and one_user.pays else built


def _read_back(
    ort: Any, spec: BuildSpec, original: onnx.ModelProto, lowered: LoweredGraph, session: Mapping[str, Option]
) -> tuple[Any, tuple[EngineWeight, ...], int]:
    """Load a lowered graph; return the session, what became of each weight, and how many nodes were left.

    Raises:
        UgsepError: a weight does not run as the precision says.
    """
    with tempfile.TemporaryDirectory(dir=lowered.path.parent, prefix=".optimised-") as scratch:
        optimised = Path(scratch) / lowered.path.name
        loaded = start_session(ort, lowered.path, session, optimised)
        compiled = onnx.load(optimised, load_external_data=False)
    statuses = weight_statuses(original, read_graph(lowered.path), compiled, lowered)
    check_weight_statuses(spec, statuses)
    return loaded, statuses, len(compiled.graph.node)


def _remove(graph: Path) -> None:
    """Remove a graph and its weights; sessions that map them keep what they mapped."""
    graph.unlink()
    graph.with_name(f"{graph.name}.data").unlink(missing_ok=True)


def _add_one_user_form(
    ort: Any,
    file: Path,
    gathering: Any,
    inputs: tuple[TensorSpec, ...],
    spec: BuildSpec,
    session: Mapping[str, Option],
) -> UserForms | None:
    """Write the broadcasting form of an item graph beside it and measure both; it only stays where it is faster.

    The form for few rows, where there is one, takes what the faster of the two takes.
    """
    one_user = file.with_name(form_file("item", ONE_USER))
    if spec.side != "item" or not lower_for_one_user(file, one_user):
        return None
    forms = measure_user_forms(gathering, start_session(ort, one_user, session), inputs, usual_rows(spec))
    few_rows = file.with_name(form_file("item", FEW_ROWS))
    if not forms.pays:
        one_user.unlink()
    elif few_rows.exists():
        lower_for_one_user(few_rows, few_rows)
    return forms


def load(
    directory: Path, built: BuiltEngine, threads: int | None = None, runtime_cache: Path | None = None
) -> Runner:
    """Start a session with the pinned options; of several forms, that for one user and the usual number of rows.

    The graph optimised at build time is used where the bundle has one and this CPU is the one it was made on;
    else the portable graph, which is always there.

    Raises:
        UgsepError: onnxruntime is missing, a file is missing or broken, or the engine's inputs are not those
            the manifest names.
    """
    ort = _import()
    session = {k: v for k, v in built.session.items() if k != _EXACT_INT8} | _int8_settings()
    if threads is not None:
        session["intra_op_num_threads"] = threads
    both = has_both_forms(built)
    forms: dict[str, Callable[[], Runner]] = {
        ANY: partial(_load_whole, ort, directory, gathering_form(built) if both else built, session)
    }
    for form in (ONE_USER, FEW_ROWS):
        name = form_file(built.side, form)
        if name in built.files:
            takes = broadcasting_form(built) if both else built
            forms[form] = partial(_started, ort, directory / name, takes, session)
    if len(forms) == 1:
        return forms[ANY]()
    return FormRunner(forms, ONE_USER if both else ANY, built, [directory / name for name in built.files])


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
        except Exception as error:  # onnxruntime raises a class of its own per status code
            raise failed_run(self._side, error) from error
        return dict(zip(self._outputs, results, strict=True))

    def close(self) -> None:
        """Release the session."""
        self._session = None


def session_io(session: Any) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return the inputs and outputs of a session; dynamic axes by name, ``?`` where they have none."""
    return tuple(map(_tensor, session.get_inputs())), tuple(map(_tensor, session.get_outputs()))


def _tensor(node: Any) -> TensorSpec:
    kind = node.type.removeprefix("tensor(").removesuffix(")")  # tensor(float)
    shape = tuple(dim if isinstance(dim, int) else str(dim or "?") for dim in node.shape)
    return TensorSpec(node.name, _DTYPES.get(kind, kind), shape)


def failed_run(side: str, error: Exception) -> UgsepError:
    """Return what a session said when it refused to run, as one line; mostly an id beyond the end of its table."""
    line = str(error).strip().splitlines()[0]
    return UgsepError(
        f"the {side} engine refused these inputs ({line}); check that ids lie within their vocabularies"
    )


def host_isa() -> str:
    """Return the microarchitecture of this machine, as archspec names it (``zen4``, ``icelake``)."""
    import archspec.cpu

    return str(archspec.cpu.host().name)


def _import() -> Any:
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise UgsepError("backend 'onnxruntime' needs onnxruntime; pip install 'ugsep[cpu]'") from error
    return ort


def _session_settings(options: Mapping[str, Option]) -> dict[str, Option]:
    return {
        "graph_optimization_level": "all",
        "intra_op_num_threads": options["threads"],
        "inter_op_num_threads": 1,
        "session.intra_op.allow_spinning": "1" if options["spinning"] else "0",
        FOLD_INT8: "1",
        **_int8_settings(),
        "disabled_optimizers": f"{_NO_FUSION_BY_CHANCE} {_SLOW_FUSION}",
    }


def _int8_settings() -> dict[str, Option]:
    """Return the session setting that int8 products need to be exact on this CPU."""
    # Not host(): that is the nearest known microarchitecture, whose features may be fewer than this CPU's.
    from archspec.cpu.detect import detected_info

    return {} if _INT8_DOT_PRODUCTS & set(detected_info().features) else {_EXACT_INT8: "1"}


def start_session(
    ort: Any,
    file: Path,
    session: Mapping[str, Option],
    optimised: Path | None = None,
    providers: Sequence[str | tuple[str, Mapping[str, str]]] = ("CPUExecutionProvider",),
) -> Any:
    """Start a session with pinned settings; ``optimised``: where to write the graph the runtime makes of it.

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
        # Folded weights may exceed the 2 GB of one protobuf message: keep them beside the graph.
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", f"{optimised.name}.data"
        )
    disabled = str(session.get("disabled_optimizers", "")).split() or None
    try:
        return ort.InferenceSession(file, options, providers=list(providers), disabled_optimizers=disabled)
    except Exception as error:  # onnxruntime raises a class of its own per status code
        line = str(error).strip().splitlines()[0]
        raise UgsepError(f"{file}: onnxruntime cannot load it ({line}); build the bundle again") from error

"""ONNX Runtime on CPUs: the graph lowered for CPUs, session options pinned, what it compiled read back."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import onnx

from engines.backend import (
    Array,
    Availability,
    BuildSpec,
    BuiltEngine,
    Option,
    Progress,
    Runner,
    TensorSpec,
    check_feeds,
    check_options,
    usual_rows,
)
from engines.backends._graph_io import graph_io, read_graph
from engines.backends._loaded_io import check_loaded
from engines.backends._ort_fates import check_fates, weight_fates
from engines.backends._ort_one_user import (
    Forms,
    TwoFormRunner,
    broadcasting_form,
    gathering_form,
    has_both_forms,
    measure_forms,
    with_both_forms,
)
from export.lowering import lower_for_cpu, lower_for_one_user
from graphs.errors import UgsepError

NAME = "onnxruntime"
#: The item graph for requests of one user; its weights are those of ``item.onnx``.
ONE_USER_FILE = "item.one_user.onnx"
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

#: One GEMM per token beats one batched MatMul from 4 rows on (1.0 to 2.4 times, tokens 8 and 16, widths 64 to 768);
#: with fewer rows only for weights of at least this many elements per token, below that nodes cost more.
_ROWS_THAT_PAY = 4
_SMALL_TOKEN_WEIGHT = 1 << 17
#: From this many rows on, int8 GEMMs on rows quantized in the graph beat MatMulNBits (768 x 2048: 1.2 times at 16
#: rows, 1.6 times at 256), which packs its weight for few rows.
_ROWS_FOR_INTEGER_GEMMS = 16


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
        many_rows = usual_rows(spec) >= _ROWS_FOR_INTEGER_GEMMS
        lowered = lower_for_cpu(spec.onnx, file, "integer-rows" if many_rows else "matmul-nbits")
    else:
        few_rows = usual_rows(spec) < _ROWS_THAT_PAY
        lowered = lower_for_cpu(spec.onnx, file, "keep", _SMALL_TOKEN_WEIGHT if few_rows else 0)
    files = [file.name, *(data.name for data in [file.with_name(f"{file.name}.data")] if data.exists())]
    progress(f"onnxruntime: reading back the optimised {spec.side} graph")
    requires: dict[str, str] = {}
    with tempfile.TemporaryDirectory(dir=out_dir, prefix=".optimised-") as scratch:
        optimised = Path(scratch) / f"{spec.side}.optimised.onnx"
        loaded = start_session(ort, file, session, optimised)
        compiled = onnx.load(optimised, load_external_data=False)
        if options["save_optimized"]:
            requires["isa"] = host_isa()
            for path in sorted(Path(scratch).iterdir()):
                path.rename(out_dir / path.name)
                files.append(path.name)
    graph = read_graph(file)
    fates = weight_fates(original, graph, compiled, lowered)
    check_fates(spec, fates)
    inputs, outputs = graph_io(graph)
    forms = _add_one_user_form(ort, file, loaded, inputs, spec, session)
    if forms is not None and forms.pays:
        files.append(ONE_USER_FILE)
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
        profiles=spec.profiles,
        weights=fates,
        figures={
            "build_seconds": time.perf_counter() - started,
            "nodes": float(len(compiled.graph.node)),
            **(forms.figures() if forms is not None else {}),
        },
        notes=(str(forms),) if forms is not None else (),
    )
    return with_both_forms(built) if ONE_USER_FILE in files else built


def _add_one_user_form(
    ort: Any,
    file: Path,
    gathering: Any,
    inputs: tuple[TensorSpec, ...],
    spec: BuildSpec,
    session: Mapping[str, Option],
) -> Forms | None:
    """Write the broadcasting form of an item graph beside it and measure both; it only stays where it is faster."""
    one_user = file.with_name(ONE_USER_FILE)
    if spec.side != "item" or not lower_for_one_user(file, one_user):
        return None
    forms = measure_forms(gathering, start_session(ort, one_user, session), inputs, usual_rows(spec))
    if not forms.pays:
        one_user.unlink()
    return forms


def load(
    directory: Path, built: BuiltEngine, threads: int | None = None, runtime_cache: Path | None = None
) -> Runner:
    """Start a session with the pinned options; where there are two forms, that for one user.

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
    if has_both_forms(built):
        one = directory / ONE_USER_FILE
        runner = _started(ort, one, broadcasting_form(built), session)
        files = [directory / name for name in built.files if name != ONE_USER_FILE]
        several = partial(_load_whole, ort, directory, gathering_form(built), session)
        return TwoFormRunner(runner, several, built, files)
    return _load_whole(ort, directory, built, session)


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

"""ONNX Runtime on CPUs: the graph lowered for CPUs, session options pinned, what it compiled read back."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from engines.backends.contract import (
    BuildSpec,
    BuiltEngine,
    EngineWeight,
    Option,
    Progress,
    TensorSpec,
    check_options,
    usual_rows,
)
from engines.backends.graph_io import graph_io, read_graph
from engines.backends.host import host_isa
from engines.backends.onnxruntime.autotune import RowForms, UserForms, measure_row_forms, measure_user_forms
from engines.backends.onnxruntime.session import (
    NAME,
    OPTIONS,
    import_onnxruntime,
    pinned_settings,
    start_session,
)
from engines.backends.onnxruntime.variants import (
    FEW_ROWS,
    ONE_USER,
    cut_profiles,
    form_file,
    row_axis,
    with_both_forms,
)
from engines.backends.onnxruntime.weight_status import check_weight_statuses, weight_statuses
from export.lowering.passes import Int8Gemms, LoweredGraph, lower_for_cpu, lower_for_one_user
from graphs.base.errors import UgsepError

#: One FP32 GEMM per token beats one batched MatMul from 4 rows on (1.0 to 2.4 times, tokens 8 and 16, widths 64 to
#: 768); with fewer rows only for weights of at least this many elements per token, below that nodes cost more. Rows
#: rounded to int8 want weights below it batched at any number of rows: rounding takes six nodes.
_ROWS_THAT_PAY = 4
_SMALL_TOKEN_WEIGHT = 1 << 17
#: int8 GEMMs for few rows, which MatMulNBits packs its weight for, and for many. Where one gives way to the other is
#: measured: on CPUs with int8 dot products at 8 to 16 rows.
_FEW_ROWS_GEMMS: Int8Gemms = "matmul-nbits"
_MANY_ROWS_GEMMS: Int8Gemms = "integer-rows"


def build(spec: BuildSpec, out_dir: Path, progress: Progress) -> BuiltEngine:
    """Lower the graph for CPUs into ``<side>.onnx`` and check what ONNX Runtime makes of each weight.

    Raises:
        UgsepError: onnxruntime is missing, an option is unknown, or a weight does not run as the precision says.
    """
    ort = import_onnxruntime()
    options = check_options(NAME, spec.options, OPTIONS)
    session = pinned_settings(options)
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

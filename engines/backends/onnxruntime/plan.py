"""Plan an engine's variants: lower every candidate graph once, measure them, and keep those that pay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from engines.backends.built_engine import EngineWeight, TensorSpec
from engines.backends.contract import Notify
from engines.backends.engine_spec import BuildSpec, Option, Profile, usual_rows
from engines.backends.graph_io import graph_io
from engines.backends.onnxruntime.autotune import (
    OTHER_SCALES,
    RowTimes,
    UserTimes,
    measure_row_variants,
    measure_user_variants,
)
from engines.backends.onnxruntime.session import start_session
from engines.backends.onnxruntime.variants import ANY, FEW_ROWS, ONE_USER, cut_profiles, row_axis
from engines.backends.onnxruntime.weight_status import check_weight_statuses, weight_statuses
from export.io import read_graph
from export.lowering import Int8Gemms, LoweredGraph, lower_for_cpu, lower_for_one_user

#: One FP32 GEMM per feature token beats one batched MatMul from 4 rows on (1.0 to 2.4 times, tokens 8 and 16, widths
#: 64 to 768); with fewer rows only if the weights of a feature token have at least this many elements, or the
#: extra nodes cost more. If every row is quantized to int8 with its own scale, smaller weights are batched at any
#: number of rows: quantizing takes six nodes.
_ROWS_THAT_PAY = 4
_SMALL_TOKEN_WEIGHT = 1 << 17
#: int8 GEMMs for few rows, which MatMulNBits packs its weight for, and for many. The row count at which one overtakes
#: the other is measured: on CPUs with int8 dot products 8 to 16 rows.
_FEW_ROWS_GEMMS: Int8Gemms = "matmul-nbits"
_MANY_ROWS_GEMMS: Mapping[str, Int8Gemms] = {"w8a8-dynamic": "integer-rows", "w8a8-static": "calibrated-rows"}


@dataclass(frozen=True)
class Variant:
    """A graph to ship: the name it has in ``variants``, and the file that planning lowered."""

    name: str
    graph: Path


@dataclass(frozen=True)
class Plan:
    """The variants of an engine, the one for any request first, and what was measured to choose them.

    ``weights`` and ``nodes`` are read back from what the runtime made of the first.
    """

    variants: tuple[Variant, ...]
    profiles: tuple[Profile, ...]
    weights: tuple[EngineWeight, ...]
    nodes: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    measured: tuple[RowTimes | UserTimes, ...]


@dataclass(frozen=True)
class _Loaded:
    """A lowered graph in a session, with what the runtime made of it."""

    graph: Path
    session: Any
    weights: tuple[EngineWeight, ...]
    nodes: int


def lower_any(spec: BuildSpec, folder: Path) -> LoweredGraph:
    """Lower the graph for requests of any size."""
    scales_rows = spec.precision == "w8a8-dynamic"
    few_usual = usual_rows(spec) < _ROWS_THAT_PAY
    return lower_for_cpu(
        spec.onnx,
        folder / f"{ANY}.onnx",
        _MANY_ROWS_GEMMS.get(spec.precision, "keep"),
        _SMALL_TOKEN_WEIGHT if scales_rows or few_usual else 0,
        half_state=spec.half_state,
    )


def plan_variants(
    ort: Any, spec: BuildSpec, lowered: LoweredGraph, session: Mapping[str, Option], progress: Notify
) -> Plan:
    """Lower the other candidate graphs, measure those that compete, and return the variants to ship.

    Raises:
        UgsepError: a weight does not run as the precision says, or two variants disagree.
    """
    original = read_graph(spec.onnx)
    progress(f"onnxruntime: reading back the optimised {spec.side} graph")
    main = _read_back(ort, spec, original, lowered, session)
    inputs, outputs = graph_io(read_graph(main.graph))
    few: _Loaded | None = None
    profiles = spec.profiles
    measured: list[RowTimes | UserTimes] = []
    scratch = lowered.path.parent
    many = _MANY_ROWS_GEMMS.get(spec.precision)
    if many is not None and lowered.fused:
        progress(f"onnxruntime: measuring which int8 GEMMs suit how many rows of the {spec.side} graph")
        few_rows = lower_for_cpu(spec.onnx, scratch / f"{FEW_ROWS}.onnx", _FEW_ROWS_GEMMS, half_state=spec.half_state)
        few = _read_back(ort, spec, original, few_rows, session)
        pair = (_FEW_ROWS_GEMMS, few.session), (many, main.session)
        tolerance = None if lowered.calibrated else OTHER_SCALES
        rows = measure_row_variants(*pair, inputs, row_axis(spec.side), usual_rows(spec), tolerance)
        measured.append(rows)
        if rows.few_up_to >= usual_rows(spec):
            main, few = few, None
        elif rows.few_up_to > 0:
            profiles = cut_profiles(spec.side, profiles, rows.few_up_to)
        else:
            few = None
    variants = [Variant(ANY, main.graph), *([Variant(FEW_ROWS, few.graph)] if few else [])]
    one_user = scratch / f"{ONE_USER}.onnx"
    if spec.side == "item" and lower_for_one_user(main.graph, one_user):
        users = measure_user_variants(main.session, start_session(ort, one_user, session), inputs, usual_rows(spec))
        measured.append(users)
        if users.pays:
            variants.append(Variant(ONE_USER, one_user))
            if few:  # it replaces the one-user variant for few rows, so it must take the same state
                lower_for_one_user(few.graph, few.graph)
    return Plan(tuple(variants), profiles, main.weights, main.nodes, inputs, outputs, tuple(measured))


def _read_back(
    ort: Any, spec: BuildSpec, original: onnx.ModelProto, lowered: LoweredGraph, session: Mapping[str, Option]
) -> _Loaded:
    """Start a lowered graph once and check what the runtime made of each weight.

    Raises:
        UgsepError: a weight does not run as the precision says.
    """
    optimised = lowered.path.with_name(f"optimised-{lowered.path.name}")
    loaded = start_session(ort, lowered.path, session, optimised)
    compiled = read_graph(optimised)
    for file in (optimised, optimised.with_name(f"{optimised.name}.data")):  # as large as the graph itself
        file.unlink(missing_ok=True)
    statuses = weight_statuses(original, read_graph(lowered.path), compiled, lowered)
    check_weight_statuses(spec, statuses)
    return _Loaded(lowered.path, loaded, statuses, len(compiled.graph.node))

"""OpenVINO on CPUs: FP32, BF16 or FP16 GEMMs, int8 weights kept compressed, tuned for latency."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from engines.backends.built_engine import BuiltEngine, EngineWeight, WeightStatus
from engines.backends.checks import check_options
from engines.backends.contract import Notify
from engines.backends.engine_spec import BuildSpec, Option
from engines.backends.graph_io import graph_io
from engines.backends.openvino.integers import check_integers
from engines.backends.openvino.library import NAME, ONNX_VARIANT, OPTIONS, RUNS_AS, core, import_openvino, runs_as
from engines.backends.openvino.runner import last_line
from export.io import read_graph
from export.lowering import LoweredGraph, lower_for_cpu
from graphs.base.errors import UgsepError

_HINT = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "w8a32": "f32", "w8a8-dynamic": "f32"}


def lower(spec: BuildSpec, folder: Path, progress: Notify) -> LoweredGraph:
    """Lower int8 weights, which OpenVINO would dequantize on every run if they were stacked; nothing else changes.

    Raises:
        UgsepError: openvino is missing, an option is wrong, the source is missing or broken, or OpenVINO would round
            integers that the graph computes with.
    """
    import_openvino()
    check_options(NAME, spec.options, OPTIONS)
    check_integers(read_graph(spec.onnx).graph)
    if ONNX_VARIANT[spec.precision] != "w8a32" and not spec.half_state:
        return LoweredGraph(spec.onnx)
    progress(f"openvino: lowering {spec.side} for the CPU ({spec.precision})")
    return lower_for_cpu(spec.onnx, folder / f"{spec.side}.onnx", half_state=spec.half_state)


def compile(spec: BuildSpec, lowered: LoweredGraph, out_dir: Path, progress: Notify) -> BuiltEngine:
    """Copy the graph as OpenVINO IR, compile it once here, and read back in which precision its GEMMs run.

    Raises:
        UgsepError: openvino is missing, an option is wrong, the graph does not compile, this CPU has no GEMMs of
            the precision, or int8 weights do not stay int8.
    """
    ov = import_openvino()
    options = check_options(NAME, spec.options, OPTIONS)
    session = _settings(spec.precision, options)
    progress(f"openvino: compiling {spec.side} ({spec.precision})")
    file = out_dir / f"{spec.side}.xml"
    graph = read_graph(lowered.path)
    inputs, outputs = graph_io(graph)
    compiled = _compile(ov, lowered.path, file, session)
    _check_precision(spec, compiled)
    nodes = _compiled_nodes(compiled)
    statuses = _statuses(spec, graph, lowered.parts, nodes)
    files = (file.name, file.with_suffix(".bin").name)
    return BuiltEngine(
        backend=NAME,
        side=spec.side,
        precision=spec.precision,
        files=files,
        bytes=sum((out_dir / name).stat().st_size for name in files),
        inputs=inputs,
        outputs=outputs,
        session=session,
        tools={"openvino": str(ov.__version__), "onnx": onnx.__version__},
        profiles=spec.profiles,
        weights=statuses,
        figures={"nodes": float(len(nodes))},
    )


def _settings(precision: str, options: Mapping[str, Option]) -> dict[str, Option]:
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": _HINT[precision],
        "INFERENCE_NUM_THREADS": options["threads"],
        "NUM_STREAMS": options["streams"],
        # By default, the plugin quantizes activations to int8 in groups of 32 wherever weights are int8.
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 32 if precision == "w8a8-dynamic" else 0,
    }


def _check_precision(spec: BuildSpec, compiled: Any) -> None:
    computes_in = runs_as(compiled)
    if computes_in != RUNS_AS[spec.precision]:
        raise UgsepError(
            f"this CPU runs {computes_in}, not the requested {spec.precision}; choose a precision it supports (fp32"
            f"{', bf16' if computes_in == 'bfloat16' else ''})"
        )


def _compile(ov: Any, source: Path, file: Path, session: Mapping[str, Option]) -> Any:
    """Write the graph as OpenVINO IR (``.xml`` and ``.bin``) and compile that."""
    try:
        ov.save_model(ov.convert_model(str(source)), str(file), compress_to_fp16=False)
        return core().compile_model(str(file), "CPU", dict(session))
    except Exception as error:  # openvino raises RuntimeError or its own classes
        raise UgsepError(f"{source}: OpenVINO cannot compile it ({last_line(error)}); export it again") from error


@dataclass(frozen=True)
class _Node:
    """One node of the compiled graph: its name, its kind, and type and shape of its weight (its second input)."""

    name: str
    kind: str
    weight: str
    shape: tuple[int, ...]


def _compiled_nodes(compiled: Any) -> tuple[_Node, ...]:
    nodes = []
    for node in compiled.get_runtime_model().get_ops():
        ports = node.inputs()
        shape = ports[1].get_partial_shape() if len(ports) > 1 else None
        fixed = tuple(shape.to_shape()) if shape is not None and shape.is_static else ()
        weight = str(ports[1].get_element_type().to_string()) if len(ports) > 1 else ""
        nodes.append(_Node(str(node.get_friendly_name()), str(node.get_rt_info()["layerType"].value), weight, fixed))
    return tuple(nodes)


def _statuses(
    spec: BuildSpec, graph: onnx.ModelProto, parts: Mapping[str, tuple[str, ...]], nodes: tuple[_Node, ...]
) -> tuple[EngineWeight, ...]:
    """Return how each int8 weight runs.

    A dequantization that was not fused keeps its name in the compiled graph. A fused one disappears, and a fully
    connected node reads an int8 weight of its shape instead; weights of a shape that too few nodes read were
    folded to float when the model was compiled.
    """
    dequantized = {n.input[0]: n.output[0] for n in graph.graph.node if n.op_type == "DequantizeLinear"}
    shapes = {t.name: tuple(t.dims) for t in graph.graph.initializer}
    left = {node.name for node in nodes if node.kind in ("Eltwise", "Convert", "Subgraph")}
    compressed = Counter(
        tuple(sorted(node.shape)) for node in nodes if node.kind == "FullyConnected" and node.weight in ("i8", "u8")
    )
    wanted = Counter(tuple(sorted(shapes[name])) for name, out in dequantized.items() if out not in left)
    if wanted and not compressed:
        raise UgsepError(f"{spec.onnx}: OpenVINO runs none of its int8 weights as int8; build fp32 instead")
    whole = {part: name for name, names in parts.items() for part in names}
    found: dict[str, list[WeightStatus]] = defaultdict(list)
    for name, out in dequantized.items():
        shape = tuple(sorted(shapes[name]))
        status: WeightStatus = "fused-int8" if compressed[shape] >= wanted[shape] else "folded-to-float"
        found[whole.get(name, name)].append("dequantized-each-run" if out in left else status)
    order: list[WeightStatus] = ["dequantized-each-run", "folded-to-float", "fused-int8"]
    return tuple(
        EngineWeight(
            name, min(statuses, key=order.index), f"{statuses.count('fused-int8')} of {len(statuses)} read int8"
        )
        for name, statuses in found.items()
    )

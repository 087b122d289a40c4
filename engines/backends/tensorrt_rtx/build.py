"""TensorRT-RTX: engines for several GPU generations, compiled on a machine that needs no GPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engines.backends.built_engine import BuiltEngine, EngineWeight
from engines.backends.checks import check_options
from engines.backends.contract import Notify
from engines.backends.engine_spec import BuildSpec, Option
from engines.backends.graph_io import graph_io
from engines.backends.tensorrt_rtx.library import NAME, OPTIONS, capability_names, import_tensorrt_rtx, specialization
from engines.backends.trt.plan import Plan, build_plan, int8_statuses, profile_shapes, write_layers
from engines.backends.trt.worker import PlanJob, Settings
from export.io import read_graph
from export.lowering import LoweredGraph, TensorRTWeights, lower_for_tensorrt
from graphs.base.errors import UgsepError, nearest

_WEIGHTS: dict[str, TensorRTWeights] = {"w8a16": "int8", "fp16": "fp16"}


def lower(spec: BuildSpec, folder: Path, progress: Notify) -> LoweredGraph:
    """Lower the graph for a strongly typed network.

    Raises:
        UgsepError: tensorrt-rtx is missing, an option is wrong, or the source is missing or broken.
    """
    _checked_options(spec)
    progress(f"tensorrt-rtx: lowering {spec.side} {spec.precision}")
    return lower_for_tensorrt(spec.onnx, folder / f"{spec.side}.onnx", _WEIGHTS[spec.precision])


def compile(spec: BuildSpec, lowered: LoweredGraph, out_dir: Path, progress: Notify) -> BuiltEngine:
    """Compile ``<side>.engine`` for all requested compute capabilities and read back how each weight runs.

    Figures: ``engine_bytes``, ``weight_bytes``, ``device_memory_bytes`` (one context, without the weights), for w8a16
    also sizes of its FP16 twin and the two ratios.

    Raises:
        UgsepError: tensorrt-rtx is missing, an option is wrong, the graph does not compile, or an int8 weight
            was folded to FP16.
    """
    trt = import_tensorrt_rtx()
    options, capabilities = _checked_options(spec)
    progress(f"tensorrt-rtx: compiling {spec.side} {spec.precision} for {', '.join(capabilities)}")
    inputs, outputs = graph_io(read_graph(lowered.path))
    engine = out_dir / f"{spec.side}.engine"
    job = PlanJob(
        "tensorrt_rtx",
        onnx=str(lowered.path),
        engine=str(engine),
        profiles=profile_shapes(inputs, spec.profiles),
        settings=Settings(tuple((int(c.split(".")[0]), int(c.split(".")[1])) for c in capabilities)),
    )
    plan = build_plan(job)
    layers = write_layers(out_dir / f"{spec.side}.layers.json", plan.layers)
    figures = {"layers": float(len(plan.layers)), **_sizes(plan, ""), "device_memory_bytes": float(plan.device_bytes)}
    statuses: tuple[EngineWeight, ...] = ()
    if spec.precision == "w8a16":
        names = [n.input[0] for n in read_graph(spec.onnx).graph.node if n.op_type == "DequantizeLinear"]
        statuses = int8_statuses(plan.layers, {name: lowered.parts.get(name, (name,))[0] for name in names})
        if options["twin"]:
            progress(f"tensorrt-rtx: compiling the FP16 twin of {spec.side} to compare sizes")
            figures |= _twin_figures(spec, job, lowered.path.with_name("twin"), figures)
    return BuiltEngine(
        backend=NAME,
        side=spec.side,
        precision=spec.precision,
        files=(engine.name, layers.name),
        bytes=engine.stat().st_size + layers.stat().st_size,
        inputs=inputs,
        outputs=outputs,
        session={"specialization": options["specialization"]},
        requires={"compute_capability": ",".join(capabilities)},
        tools={"tensorrt-rtx": str(trt.__version__)},
        profiles=spec.profiles,
        weights=statuses,
        figures=figures,
        notes=_notes(spec, statuses),
    )


def _capabilities(trt: Any, asked: str) -> list[str]:
    known = capability_names(trt)
    names = [name.strip() for name in asked.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise UgsepError(f"backend 'tensorrt-rtx': compute capability '{name}'{nearest(name, known)}")
    if not names:
        raise UgsepError(f"backend 'tensorrt-rtx': no compute capability given; known: {', '.join(known)}")
    return names


def _checked_options(spec: BuildSpec) -> tuple[dict[str, Option], list[str]]:
    """Return all options, and the compute capabilities among them."""
    trt = import_tensorrt_rtx()
    options = check_options(NAME, spec.options, OPTIONS)
    specialization(trt, str(options["specialization"]))
    return options, _capabilities(trt, str(options["compute_capabilities"]))


def _twin_figures(spec: BuildSpec, job: PlanJob, twin: Path, own: Mapping[str, float]) -> dict[str, float]:
    """Compile the same graph with FP16 weights to ``<twin>.engine``; return its sizes, and the ratios to them."""
    onnx, engine = twin.with_suffix(".onnx"), twin.with_suffix(".engine")
    lower_for_tensorrt(spec.onnx, onnx, "folded")
    figures = _sizes(build_plan(dataclasses.replace(job, onnx=str(onnx), engine=str(engine))), "fp16_")
    figures["engine_ratio"] = own["engine_bytes"] / figures["fp16_engine_bytes"]
    figures["weight_ratio"] = own["weight_bytes"] / max(figures["fp16_weight_bytes"], 1.0)
    return figures


def _sizes(plan: Plan, prefix: str) -> dict[str, float]:
    return {f"{prefix}engine_bytes": float(plan.bytes), f"{prefix}weight_bytes": float(plan.weight_bytes)}


def _notes(spec: BuildSpec, statuses: tuple[EngineWeight, ...]) -> tuple[str, ...]:
    folded = [status.name for status in statuses if status.status == "folded-to-float"]
    if folded:
        raise UgsepError(
            f"{spec.onnx}: TensorRT-RTX folded {len(folded)} int8 weights to FP16 ({', '.join(folded[:3])}), so the "
            "engine would not be w8a16; quantize the graph again in the canonical form"
        )
    slow = [status.name for status in statuses if status.status == "dequantized-each-run"]
    return (f"{len(slow)} int8 weights are dequantized by a separate kernel: {', '.join(slow)}",) if slow else ()

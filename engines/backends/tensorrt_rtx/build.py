"""TensorRT-RTX: engines for several GPU generations, compiled on a machine that needs no GPU."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

from engines.backends.built_engine import BuiltEngine, EngineWeight
from engines.backends.checks import check_options
from engines.backends.contract import Progress
from engines.backends.engine_spec import BuildSpec
from engines.backends.graph_io import graph_io
from engines.backends.tensorrt_rtx.library import NAME, OPTIONS, capability_names, import_tensorrt_rtx, specialization
from engines.backends.trt.plan import Plan, build_plan, int8_statuses, profile_shapes, write_layers
from engines.backends.trt.worker import Job, Settings
from export.io import read_graph
from export.lowering.tensorrt import Weights, lower_for_tensorrt
from graphs.base.errors import UgsepError, nearest

_WEIGHTS: dict[str, Weights] = {"w8a16": "int8", "fp16": "fp16"}


def build(spec: BuildSpec, out_dir: Path, progress: Progress) -> BuiltEngine:
    """Compile ``<side>.engine`` for all asked compute capabilities and read back what became of each weight.

    Figures: ``engine_bytes``, ``weight_bytes``, ``device_memory_bytes`` (a context, beside the weights), for w8a16
    also sizes of its FP16 twin and the two ratios.

    Raises:
        UgsepError: tensorrt-rtx is missing, an option is wrong, the graph does not compile, or an int8 weight
            was folded to FP16.
    """
    trt = import_tensorrt_rtx()
    options = check_options(NAME, spec.options, OPTIONS)
    capabilities = _capabilities(trt, str(options["compute_capabilities"]))
    specialization(trt, str(options["specialization"]))
    started = time.perf_counter()
    progress(f"tensorrt-rtx: compiling {spec.side} {spec.precision} for {', '.join(capabilities)}")
    scratch = out_dir / f".{spec.side}.lowered.onnx"
    try:
        lowered = lower_for_tensorrt(spec.onnx, scratch, _WEIGHTS[spec.precision])
        inputs, outputs = graph_io(read_graph(scratch))

        engine = out_dir / f"{spec.side}.engine"
        job = Job(
            "tensorrt_rtx",
            onnx=str(scratch),
            engine=str(engine),
            profiles=profile_shapes(inputs, spec.profiles),
            settings=Settings(tuple((int(c.split(".")[0]), int(c.split(".")[1])) for c in capabilities)),
        )
        plan = build_plan(job)
        layers = write_layers(out_dir / f"{spec.side}.layers.json", plan.layers)
        seconds = time.perf_counter() - started
        figures = {"build_seconds": seconds, "layers": float(len(plan.layers)), **_sizes(plan, "")}
        figures["device_memory_bytes"] = float(plan.device_bytes)
        statuses: tuple[EngineWeight, ...] = ()
        if spec.precision == "w8a16":
            names = [n.input[0] for n in read_graph(spec.onnx).graph.node if n.op_type == "DequantizeLinear"]
            statuses = int8_statuses(plan.layers, {name: lowered.merged.get(name, name) for name in names})
            if options["twin"]:
                progress(f"tensorrt-rtx: compiling the FP16 twin of {spec.side} to compare sizes")
                lower_for_tensorrt(spec.onnx, scratch, "folded")
                twin = out_dir / f".{spec.side}.twin.engine"
                figures |= _sizes(build_plan(dataclasses.replace(job, engine=str(twin))), "fp16_")
                figures["engine_ratio"] = figures["engine_bytes"] / figures["fp16_engine_bytes"]
                figures["weight_ratio"] = figures["weight_bytes"] / max(figures["fp16_weight_bytes"], 1.0)
    finally:
        for name in (scratch.name, f"{scratch.name}.data", f".{spec.side}.twin.engine"):
            (out_dir / name).unlink(missing_ok=True)
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


def _sizes(plan: Plan, prefix: str) -> dict[str, float]:
    return {f"{prefix}engine_bytes": float(plan.bytes), f"{prefix}weight_bytes": float(plan.weight_bytes)}


def _notes(spec: BuildSpec, statuses: tuple[EngineWeight, ...]) -> tuple[str, ...]:
    folded = [status.name for status in statuses if status.status == "folded-to-float"]
    if folded:
        raise UgsepError(
            f"{spec.onnx}: TensorRT-RTX folded {len(folded)} int8 weights to FP16 ({', '.join(folded[:3])}), so this "
            "is no w8a16 engine; quantize the graph again in the canonical form"
        )
    slow = [status.name for status in statuses if status.status == "dequantized-each-run"]
    return (f"{len(slow)} int8 weights are dequantized by a kernel of their own: {', '.join(slow)}",) if slow else ()

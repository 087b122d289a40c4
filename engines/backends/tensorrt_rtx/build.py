"""TensorRT-RTX: engines for several GPU generations, compiled on a machine that needs no GPU."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

from engines.backends.contract import (
    Availability,
    BuildSpec,
    BuiltEngine,
    EngineWeight,
    Option,
    Progress,
    Runner,
    check_options,
)
from engines.backends.graph_io import graph_io, read_graph
from engines.backends.trt.plan import Plan, build_plan, int8_statuses, profile_shapes, write_layers
from engines.backends.trt.runner import load_plan
from engines.backends.trt.worker import Job, Settings
from export.lowering.tensorrt import Weights, lower_for_tensorrt
from graphs.base.errors import UgsepError, nearest

NAME = "tensorrt-rtx"
ONNX_VARIANT = {"w8a16": "w8a16", "fp16": "fp32"}
#: ``compute_capabilities``: GPU generations in one engine. ``twin``: also compile the FP16 twin of a w8a16 graph
#: (sizes are compared, nothing is kept). ``specialization``: when kernels for the request's own shapes are made while
#: serving: lazy (in the background, general ones until then), eager (before the first answer), none.
OPTIONS: dict[str, Option] = {
    "compute_capabilities": "8.0,8.6,8.9,12.0",
    "twin": True,
    "specialization": "lazy",
}

_INSTALL = "pip install 'ugsep[tensorrt-rtx]'"
_WEIGHTS: dict[str, Weights] = {"w8a16": "int8", "fp16": "fp16"}


def probe() -> Availability:
    """Can TensorRT-RTX compile here, and is there a GPU to run on."""
    try:
        trt = _import()
    except UgsepError as error:
        return Availability(False, False, str(error))
    from engines.backends.trt.runner import gpu

    capability, reason = gpu()
    names = _capability_names(trt)
    if capability is None:
        return Availability(True, False, f"tensorrt-rtx {trt.__version__} compiles here but cannot run: {reason}")
    if capability not in names:
        return Availability(
            True,
            False,
            f"tensorrt-rtx {trt.__version__} compiles here but does not support this GPU, compute capability "
            f"{capability}; it supports {', '.join(names)}",
        )
    return Availability(True, True, f"tensorrt-rtx {trt.__version__}, compute capability {capability}")


def target() -> str:
    """Return ``any machine``: the compute capabilities are options, and compiling needs no GPU."""
    return "any machine"


def build(spec: BuildSpec, out_dir: Path, progress: Progress) -> BuiltEngine:
    """Compile ``<side>.engine`` for all asked compute capabilities and read back what became of each weight.

    Figures: ``engine_bytes``, ``weight_bytes``, ``device_memory_bytes`` (a context, beside the weights), for w8a16
    also sizes of its FP16 twin and the two ratios.

    Raises:
        UgsepError: tensorrt-rtx is missing, an option is wrong, the graph does not compile, or an int8 weight
            was folded to FP16.
    """
    trt = _import()
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


def load(
    directory: Path, built: BuiltEngine, threads: int | None = None, runtime_cache: Path | None = None
) -> Runner:
    """Load an engine on this machine's GPU.

    ``runtime_cache``: a file for the kernels the library compiles while serving, read now and written when the
    runner is closed, so that the next process need not compile them again; never inside the bundle.

    Raises:
        UgsepError: tensorrt-rtx, a driver or a GPU of a capability the engine has is missing; both are named.
    """
    trt = _import()
    caches: list[Any] = []

    def make_context(engine: Any) -> Any:
        config = engine.create_runtime_config()
        config.dynamic_shapes_kernel_specialization_strategy = specialization(
            trt, str(built.session.get("specialization", OPTIONS["specialization"]))
        )
        if not caches:  # one for all profiles
            caches.append(config.create_runtime_cache())
            if runtime_cache is not None and runtime_cache.is_file():
                caches[0].deserialize(runtime_cache.read_bytes())  # one of another version is ignored by the library
        config.set_runtime_cache(caches[0])
        return engine.create_execution_context(config)

    def keep_kernels() -> None:
        if runtime_cache is not None and caches:
            runtime_cache.parent.mkdir(parents=True, exist_ok=True)
            part = runtime_cache.with_name(f".{runtime_cache.name}.part")
            part.write_bytes(memoryview(caches[0].serialize()))
            part.replace(runtime_cache)

    return load_plan(trt, NAME, directory, built, make_context, keep_kernels)


def specialization(trt: Any, option: str) -> Any:
    """Return the library's strategy for an option.

    Raises:
        UgsepError: none of lazy, eager, none.
    """
    strategies = trt.DynamicShapesKernelSpecializationStrategy
    known = {"lazy": strategies.LAZY, "eager": strategies.EAGER, "none": strategies.NONE}
    if option not in known:
        raise UgsepError(f"backend 'tensorrt-rtx': specialization '{option}'{nearest(option, known)}")
    return known[option]


def _import() -> Any:
    try:
        import tensorrt_rtx as trt
    except ImportError as error:
        raise UgsepError(f"backend 'tensorrt-rtx' needs tensorrt-rtx ({error}); {_INSTALL}") from error
    return trt


def _capability_names(trt: Any) -> dict[str, Any]:
    """Return ``{"8.9": ComputeCapability.SM89, ...}`` for what the installed library can compile for."""
    members = {name: getattr(trt.ComputeCapability, name) for name in dir(trt.ComputeCapability)}
    digits = {name[2:]: value for name, value in members.items() if name.startswith("SM")}
    return {f"{d[:-1]}.{d[-1]}": digits[d] for d in sorted(digits, key=int)}


def _capabilities(trt: Any, asked: str) -> list[str]:
    known = _capability_names(trt)
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

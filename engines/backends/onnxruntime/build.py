"""ONNX Runtime on CPUs: the graph lowered for CPUs, session options pinned, what it compiled read back."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx

from engines.backends.built_engine import BuiltEngine
from engines.backends.checks import check_options
from engines.backends.contract import Notify
from engines.backends.engine_spec import BuildSpec
from engines.backends.host import host_isa
from engines.backends.onnxruntime.plan import Variant, lower_any, plan_variants
from engines.backends.onnxruntime.session import NAME, OPTIONS, import_onnxruntime, pinned_settings, start_session
from engines.backends.onnxruntime.variants import ONE_USER, variant_file, with_one_user_variant
from export.io import read_graph
from export.lowering import LoweredGraph
from graphs.base.errors import UgsepError
from graphs.base.names import GraphSide


def lower(spec: BuildSpec, folder: Path, progress: Notify) -> LoweredGraph:
    """Lower the graph for CPUs, for requests of any size.

    Raises:
        UgsepError: onnxruntime is missing, an option is unknown, or the source is missing or broken.
    """
    import_onnxruntime()
    check_options(NAME, spec.options, OPTIONS)
    progress(f"onnxruntime: lowering {spec.side} for the CPU ({spec.precision})")
    return lower_any(spec, folder)


def compile(spec: BuildSpec, lowered: LoweredGraph, out_dir: Path, progress: Notify) -> BuiltEngine:
    """Write ``<side>.onnx`` and the variants of it that pay on this machine.

    Raises:
        UgsepError: onnxruntime is missing, an option is unknown, or a weight does not run as the precision says.
    """
    ort = import_onnxruntime()
    options = check_options(NAME, spec.options, OPTIONS)
    session = pinned_settings(options)
    main = out_dir / variant_file(spec.side)
    if main.resolve() == spec.onnx.resolve():
        raise UgsepError(f"{main}: the engine would overwrite the graph it is built from; give another directory")
    plan = plan_variants(ort, spec, lowered, session, progress)
    files = _write(plan.variants, spec.side, out_dir)
    requires: dict[str, str] = {}
    if options["save_optimized"]:
        requires["isa"] = host_isa()
        optimised = out_dir / f"{spec.side}.optimised.onnx"
        start_session(ort, main, session, optimised)
        files += [name for name in (optimised.name, f"{optimised.name}.data") if (out_dir / name).exists()]
    built = BuiltEngine(
        backend=NAME,
        side=spec.side,
        precision=spec.precision,
        files=tuple(files),
        bytes=sum((out_dir / name).stat().st_size for name in files),
        inputs=plan.inputs,
        outputs=plan.outputs,
        session=session,
        requires=requires,
        tools={"onnxruntime": ort.__version__, "onnx": onnx.__version__},
        profiles=plan.profiles,
        weights=plan.weights,
        figures={
            "nodes": float(plan.nodes),
            **{name: value for times in plan.measured for name, value in times.figures().items()},
        },
        notes=(*map(str, plan.measured), *_uncalibrated(spec, lowered)),
    )
    return with_one_user_variant(built) if any(v.name == ONE_USER for v in plan.variants) else built


def _uncalibrated(spec: BuildSpec, lowered: LoweredGraph) -> Iterator[str]:
    """Yield a note on the int8 weights of a calibrated engine whose inputs have no range."""
    left = sorted(lowered.fused - lowered.calibrated) if spec.precision == "w8a8-static" else []
    if left:
        listed = ", ".join(left[:3]) + (", .." if len(left) > 3 else "")
        yield f"{len(left)} of {len(lowered.fused)} int8 products scale every row: no calibrated range for {listed}"


def _write(variants: Sequence[Variant], side: GraphSide, out_dir: Path) -> list[str]:
    """Move the planned graphs to their final names, their weights with them; returns the names of all files."""
    data = {f"{v.graph.name}.data": f"{variant_file(side, v.name)}.data" for v in variants}
    files: list[str] = []
    models = [read_graph(variant.graph) for variant in variants]  # variants share weights: before any are moved
    for variant, model in zip(variants, models, strict=True):
        for entry in (entry for tensor in model.graph.initializer for entry in tensor.external_data):
            if entry.key == "location":
                entry.value = data[entry.value]
        files.append(variant_file(side, variant.name))
        onnx.save(model, out_dir / files[-1])
        weights = variant.graph.with_name(f"{variant.graph.name}.data")
        if weights.exists():
            files.append(data[weights.name])
            shutil.move(weights, out_dir / files[-1])  # the folders may be on different file systems
    return files

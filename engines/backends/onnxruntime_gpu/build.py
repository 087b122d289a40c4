"""ONNX Runtime on NVIDIA GPUs: CUDA or TensorRT execution provider, tensors bound on the device, state kept there.

Written against onnxruntime-gpu 1.31. What a machine without a GPU can run was run: lowering, folding of int8
weights, the bindings (on host memory), and every refusal. The providers themselves need a GPU.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import onnx

from engines.backends.built_engine import BuiltEngine, EngineWeight, TensorSpec
from engines.backends.checks import check_options
from engines.backends.contract import Notify
from engines.backends.engine_spec import BuildSpec, Profile
from engines.backends.graph_io import graph_io
from engines.backends.onnxruntime.session import start_session
from engines.backends.onnxruntime.weight_status import check_weight_statuses, weight_statuses
from engines.backends.onnxruntime_gpu.session import (
    NAME,
    OPTIONS,
    TENSORRT,
    check_provider,
    probe,
    provider_name,
    providers,
    session_settings,
    target,
)
from engines.backends.trt.plan import row_counts
from export.io import read_graph
from export.lowering import LoweredGraph, lower_for_gpu, lower_for_tensorrt
from graphs.base.errors import UgsepError


def lower(spec: BuildSpec, folder: Path, progress: Notify) -> LoweredGraph:
    """Lower the graph to ``<side>.onnx``: FP16 if that is the precision, int8 tables gathered as int8 otherwise.

    Raises:
        UgsepError: the GPU package, a driver or a GPU is missing, an option is unknown, the source is missing or
            broken, or a value does not fit FP16.
    """
    provider_name(str(check_options(NAME, spec.options, OPTIONS)["provider"]))
    here = probe()
    if not here.can_build:
        raise UgsepError(f"backend '{NAME}' cannot build here: {here.reason}")
    progress(f"{NAME}: lowering {spec.side} for the GPU ({spec.precision})")
    return lower_graph(spec, folder)


def lower_graph(spec: BuildSpec, folder: Path) -> LoweredGraph:
    """Lower the graph as ``lower`` does, whether or not this machine has a GPU."""
    file = folder / f"{spec.side}.onnx"
    return lower_for_tensorrt(spec.onnx, file, "fp16") if spec.precision == "fp16" else lower_for_gpu(spec.onnx, file)


def compile(spec: BuildSpec, lowered: LoweredGraph, out_dir: Path, progress: Notify) -> BuiltEngine:
    """Start ``<side>.onnx`` on the GPU once, and read back how each weight runs.

    With the tensorrt provider the compiled engine is embedded in ``<side>.context.onnx``; it does not tell which of
    its layers reads which weight, so no statuses are listed.

    Raises:
        UgsepError: an option is unknown, the engine would overwrite its source, or a weight does not run as the
            precision says.
    """
    options = check_options(NAME, spec.options, OPTIONS)
    name = provider_name(str(options["provider"]))
    import onnxruntime as ort

    file = out_dir / lowered.path.name
    if file.resolve() == spec.onnx.resolve():
        raise UgsepError(f"{file}: the engine would overwrite the graph it is built from; give another directory")
    for path in (lowered.path, lowered.path.with_name(f"{lowered.path.name}.data")):
        if path.exists():
            shutil.move(path, out_dir / path.name)  # the folders may be on different file systems
    inputs, outputs = graph_io(read_graph(file))
    session = session_settings(options)
    files = [file.name, *(data.name for data in [file.with_name(f"{file.name}.data")] if data.exists())]
    progress(f"{NAME}: starting {spec.side} with the {name}")
    statuses: tuple[EngineWeight, ...] = ()
    with tempfile.TemporaryDirectory(dir=out_dir, prefix=".optimised-") as scratch:
        optimised = Path(scratch) / "optimised.onnx"
        if name == TENSORRT:
            context = out_dir / f"{spec.side}.context.onnx"
            compiling = providers(session, {**_profile_shapes(inputs, spec.profiles), **_dump_options(context)})
            check_provider(start_session(ort, file, session, None, compiling), name)
            files = [context.name]
            for path in (file, file.with_name(f"{file.name}.data")):
                path.unlink(missing_ok=True)
        else:
            check_provider(start_session(ort, file, session, optimised, providers(session)), name)
            compiled = read_graph(optimised)
            statuses = weight_statuses(read_graph(spec.onnx), read_graph(file), compiled, lowered)
            check_weight_statuses(spec, statuses)
    return BuiltEngine(
        backend=NAME,
        side=spec.side,
        precision=spec.precision,
        files=tuple(files),
        bytes=sum((out_dir / name).stat().st_size for name in files),
        inputs=inputs,
        outputs=outputs,
        session=session,
        requires={"gpu": target()} if name == TENSORRT else {},
        tools={"onnxruntime": ort.__version__, "onnx": onnx.__version__},
        profiles=spec.profiles,
        weights=statuses,
    )


def _profile_shapes(inputs: tuple[TensorSpec, ...], profiles: tuple[Profile, ...]) -> dict[str, str]:
    """Return the options that name the rows of every input; several profiles are separated by commas per input."""
    parts: dict[str, list[str]] = {"min": [], "opt": [], "max": []}
    for profile in profiles:
        for spec in inputs:
            for kind, shape in zip(parts, row_counts(profile, spec), strict=True):
                parts[kind].append(f"{spec.name}:{'x'.join(map(str, shape))}")
    return {f"trt_profile_{kind}_shapes": ",".join(shapes) for kind, shapes in parts.items()}


def _dump_options(context: Path) -> dict[str, str]:
    return {
        "trt_dump_ep_context_model": "1",
        "trt_ep_context_file_path": str(context),
        "trt_ep_context_embed_mode": "1",
    }

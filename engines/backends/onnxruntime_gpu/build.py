"""ONNX Runtime on NVIDIA GPUs: CUDA or TensorRT execution provider, tensors bound on the device, state kept there.

Written against onnxruntime-gpu 1.31. What a machine without a GPU can run was run: lowering, folding of int8
weights, the bindings (on host memory), and every refusal. The providers themselves need a GPU.
"""

from __future__ import annotations

import ctypes
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from engines.backends.contract import (
    Availability,
    BuildSpec,
    BuiltEngine,
    EngineWeight,
    Option,
    Profile,
    Progress,
    TensorSpec,
    check_options,
)
from engines.backends.graph_io import graph_io, read_graph
from engines.backends.onnxruntime.build import FOLD_INT8, session_io, start_session
from engines.backends.onnxruntime.weight_status import check_weight_statuses, weight_statuses
from engines.backends.onnxruntime_gpu.runner import BoundRunner
from engines.backends.tensors import check_loaded
from engines.backends.trt.plan import row_counts
from export.lowering.passes import LoweredGraph, lower_for_gpu
from export.lowering.tensorrt import lower_for_tensorrt
from graphs.base.errors import UgsepError, nearest

NAME = "onnxruntime-gpu"
ONNX_VARIANT = {"fp16": "fp32", "w8a16": "w8a16", "fp32": "fp32", "w8a32": "w8a32"}
#: ``provider``: cuda, or tensorrt, which compiles the whole graph when it is built. ``device``: index of the GPU.
#: ``tf32``: let FP32 GEMMs round their inputs to 10 bits of mantissa; off, so that fp32 means FP32.
OPTIONS: dict[str, Option] = {"provider": "cuda", "device": 0, "tf32": False}

_CUDA, _TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"
_PROVIDERS = {"cuda": _CUDA, "tensorrt": _TENSORRT}
_INSTALL = "pip uninstall onnxruntime, then pip install 'ugsep[gpu]'"


def probe() -> Availability:
    """Is the GPU package of ONNX Runtime here, a driver, and a GPU it can allocate memory on."""
    try:
        import onnxruntime as ort
    except ImportError as error:
        return Availability(False, False, f"{error}; {_INSTALL}")
    if _CUDA not in ort.get_available_providers():
        return Availability(False, False, f"onnxruntime {ort.__version__} is the CPU package; {_INSTALL}")
    gpu = _gpu_name(0)
    if gpu is None:
        return Availability(
            False, False, f"onnxruntime {ort.__version__} has CUDA, but no NVIDIA driver or GPU is here"
        )
    try:
        ort.OrtValue.ortvalue_from_shape_and_type([1], np.float32, "cuda", 0)
    except Exception as error:  # the runtime raises RuntimeError and classes of its own alike
        return Availability(False, False, f"onnxruntime {ort.__version__} cannot use the GPU ({_first(error)})")
    return Availability(True, True, f"onnxruntime {ort.__version__}, {gpu}")


def target() -> str:
    """Return the name of this machine's first GPU: the tensorrt provider compiles for it."""
    return _gpu_name(0) or "no GPU"


def build(spec: BuildSpec, out_dir: Path, progress: Progress) -> BuiltEngine:
    """Write ``<side>.onnx`` for the GPU, start it there once, and read back what became of each weight.

    With the tensorrt provider the compiled engine is embedded in ``<side>.context.onnx``; it does not tell which of
    its layers reads which weight, so no statuses are listed.

    Raises:
        UgsepError: the GPU package, a driver or a GPU is missing, an option is unknown, or a weight does not run as
            the precision says.
    """
    options = check_options(NAME, spec.options, OPTIONS)
    name = provider_name(str(options["provider"]))
    here = probe()
    if not here.can_build:
        raise UgsepError(f"backend '{NAME}' cannot build here: {here.reason}")
    import onnxruntime as ort

    started = time.perf_counter()
    progress(f"{NAME}: lowering {spec.side} for the GPU ({spec.precision})")
    file, record = lower(spec, out_dir)
    inputs, outputs = graph_io(read_graph(file))
    session = session_settings(options)
    files = [file.name, *(data.name for data in [file.with_name(f"{file.name}.data")] if data.exists())]
    progress(f"{NAME}: starting {spec.side} with the {name}")
    statuses: tuple[EngineWeight, ...] = ()
    with tempfile.TemporaryDirectory(dir=out_dir, prefix=".optimised-") as scratch:
        optimised = Path(scratch) / "optimised.onnx"
        if name == _TENSORRT:
            context = out_dir / f"{spec.side}.context.onnx"
            providers = _providers(session, {**_profile_shapes(inputs, spec.profiles), **_dump_options(context)})
            _check_provider(start_session(ort, file, session, None, providers), name)
            files = [context.name]
            for path in (file, file.with_name(f"{file.name}.data")):
                path.unlink(missing_ok=True)
        else:
            _check_provider(start_session(ort, file, session, optimised, _providers(session)), name)
            compiled = onnx.load(optimised, load_external_data=False)
            statuses = weight_statuses(read_graph(spec.onnx), read_graph(file), compiled, record)
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
        requires={"gpu": target()} if name == _TENSORRT else {},
        tools={"onnxruntime": ort.__version__, "onnx": onnx.__version__},
        profiles=spec.profiles,
        weights=statuses,
        figures={"build_seconds": time.perf_counter() - started},
    )


def load(
    directory: Path, built: BuiltEngine, threads: int | None = None, runtime_cache: Path | None = None
) -> BoundRunner:
    """Start a session on the GPU.

    Raises:
        UgsepError: the GPU package, a driver or a GPU is missing, the runtime would fall back to the CPU, or the
            engine is not what the manifest says.
    """
    here = probe()
    if not here.can_run:
        raise UgsepError(f"{built.side} engine needs an NVIDIA GPU: {here.reason}")
    import onnxruntime as ort

    name = provider_name(str(built.session["provider"]))
    gpu = target()
    if built.requires.get("gpu", gpu) != gpu:
        raise UgsepError(
            f"{built.side} engine is for {built.requires['gpu']}, this machine has {gpu}; build it again here"
        )
    file = directory / f"{built.side}{'.context' if name == _TENSORRT else ''}.onnx"
    session = start_session(ort, file, built.session, None, _providers(built.session))
    _check_provider(session, name)
    check_loaded(file, built, *session_io(session))
    return BoundRunner(session, built, "cuda", int(built.session["device"]))


def lower(spec: BuildSpec, out_dir: Path) -> tuple[Path, LoweredGraph]:
    """Write the graph of ``spec`` as the GPU runs it best; returns the file and what was rewritten.

    Raises:
        UgsepError: the source is missing or broken, or a value does not fit FP16.
    """
    file = out_dir / f"{spec.side}.onnx"
    if file.resolve() == spec.onnx.resolve():
        raise UgsepError(f"{file}: the engine would overwrite the graph it is built from; give another directory")
    if spec.precision == "fp16":
        lower_for_tensorrt(spec.onnx, file, "fp16")
        return file, LoweredGraph(file)
    return file, lower_for_gpu(spec.onnx, file)


def session_settings(options: Mapping[str, Option]) -> dict[str, Option]:
    """Return the settings pinned in the manifest: int8 constants fold to float once, when the session starts."""
    return {
        "graph_optimization_level": "all",
        FOLD_INT8: "1",
        "provider": options["provider"],
        "device": options["device"],
        "use_tf32": "1" if options["tf32"] else "0",
    }


def provider_name(option: str) -> str:
    """Return ONNX Runtime's name of a provider.

    Raises:
        UgsepError: neither cuda nor tensorrt.
    """
    if option not in _PROVIDERS:
        raise UgsepError(f"backend '{NAME}': provider '{option}'{nearest(option, _PROVIDERS)}")
    return _PROVIDERS[option]


def _providers(
    session: Mapping[str, Option], tensorrt: Mapping[str, str] | None = None
) -> list[tuple[str, Mapping[str, str]]]:
    device = {"device_id": str(session["device"])}
    cuda = (_CUDA, {**device, "use_tf32": str(session["use_tf32"])})
    if session["provider"] == "cuda":
        return [cuda]
    return [(_TENSORRT, {**device, **(tensorrt or {})}), cuda]


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


def _check_provider(session: Any, name: str) -> None:
    """Refuse a session that fell back to the CPU: ONNX Runtime only warns of it."""
    if session.get_providers()[0] != name:
        raise UgsepError(
            f"onnxruntime runs the graph on {session.get_providers()[0]} instead of {name}; its CUDA or TensorRT "
            "libraries do not load, see its requirements page"
        )


def _gpu_name(index: int) -> str | None:
    """Return what the NVIDIA driver calls a GPU, None where there is no driver or no such GPU."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), index):
        return None
    driver.cuDeviceGetName(name, len(name), device)
    return name.value.decode()


def _first(error: Exception) -> str:
    return str(error).strip().splitlines()[0]

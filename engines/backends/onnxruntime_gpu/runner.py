"""Load an engine on ONNX Runtime's GPU providers; imports no ONNX tooling."""

from __future__ import annotations

from pathlib import Path

from engines.backends.built_engine import BuiltEngine
from engines.backends.checks import check_loaded
from engines.backends.onnxruntime.session import session_io, start_session
from engines.backends.onnxruntime_gpu.bound import BoundRunner
from engines.backends.onnxruntime_gpu.session import (
    TENSORRT,
    check_provider,
    probe,
    provider_name,
    providers,
    target,
)
from graphs.base.errors import UgsepError


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
    file = directory / f"{built.side}{'.context' if name == TENSORRT else ''}.onnx"
    session = start_session(ort, file, built.session, None, providers(built.session))
    check_provider(session, name)
    check_loaded(file, built, *session_io(session))
    return BoundRunner(session, built, "cuda", int(built.session["device"]))

"""Environments of the other servers, made once under one folder and never in ours."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from engines.backends.contract import Notify
from graphs.base.errors import UgsepError

PYTRITON, KSERVE = "nvidia-pytriton==0.7.0", "kserve==0.21.0"
DEFAULT_FOLDER = Path("build/rivals")
_READY = ".ready"


def set_up(folder: Path, say: Notify) -> dict[str, str]:
    """Install what is missing; return why a server cannot run, by its name: empty if all can.

    Tritonserver comes out of NVIDIA's PyTriton wheel, with an environment for its Python backend; KServe gets an
    environment of its own. Both run the same version of ONNX Runtime as ours.
    """
    folder.mkdir(parents=True, exist_ok=True)
    problems = {}
    for name, make in (("triton", _triton), ("kserve", _kserve)):
        if (folder / name / _READY).is_file():
            say(f"{name}: ready")
            continue
        shutil.rmtree(folder / name, ignore_errors=True)
        try:
            make(folder / name, say)
            (folder / name / _READY).touch()
            say(f"{name}: ready")
        except (OSError, UgsepError) as error:
            problems[name] = str(error)
            say(f"{name}: {error}")
    return problems


def missing(folder: Path) -> dict[str, str]:
    """Return why a server cannot run, by its name, without installing anything."""
    command = "python -m benchmarks.serving rivals"
    return {n: f"not installed; run: {command}" for n in ("triton", "kserve") if not (folder / n / _READY).is_file()}


def _triton(folder: Path, say: Notify) -> None:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    say("triton: downloading the wheel that has tritonserver")
    wheel = folder / "wheel"
    _run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(wheel), PYTRITON])
    server, made = folder / "server", wheel / "pytriton" / "tritonserver"
    for part in ("bin", "backends", "caches"):
        shutil.copytree(made / part, server / part)
    stub = made / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        raise UgsepError(f"{PYTRITON} has no Python backend for Python {version}")
    shutil.copy2(stub, server / "backends" / "python")
    shutil.move(wheel / "nvidia_pytriton.libs", folder / "libs")
    shutil.rmtree(wheel)
    # With NumPy 2 the backend's outputs are empty or wrong.
    _environment(folder / "env", ["numpy<2", _our_runtime()], say)


def _kserve(folder: Path, say: Notify) -> None:
    _environment(folder / "env", [KSERVE, _our_runtime()], say)


def _our_runtime() -> str:
    return f"onnxruntime=={importlib.metadata.version('onnxruntime')}"


def _environment(folder: Path, packages: Sequence[str], say: Notify) -> None:
    say(f"{folder.parent.name}: installing {', '.join(packages)}")
    _run([sys.executable, "-m", "venv", str(folder)])
    _run([str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *packages])


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        raise UgsepError(f"'{' '.join(command[:6])} ...' failed: {lines[-1] if lines else done.returncode}")

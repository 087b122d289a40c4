"""The process that compiles one graph with TensorRT or TensorRT-RTX, through Polygraphy.

    python -m engines.backends.trt.worker < job.json > outcome.json

Polygraphy binds to one of the two libraries when it is imported (``POLYGRAPHY_USE_TENSORRT_RTX``), so each build
runs in a process that sets it. That also isolates the caller from a compiler that crashes or holds gigabytes.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphs.base.config import parse
from graphs.base.errors import first_line

if TYPE_CHECKING:
    import tensorrt

_DEVICE_MEMORY = re.compile(r"Total (Activation|Device Persistent) Memory: (\d+) bytes")
#: TensorRT-RTX logs this as an error in every build.
_NOISE = "Thread context has not been set! Using global log stream."

#: Minimum, optimum and maximum shape of one input.
Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Settings:
    """How to compile, in plain values that serialize to JSON.

    ``compute_capabilities``: GPU generations, TensorRT-RTX only; TensorRT compiles for this machine's GPU.
    ``hardware_compatibility``: a name of ``HardwareCompatibilityLevel``. ``workspace_bytes``: 0 for no limit.
    ``timing_cache``: a file that builds share. ``plugin``: the compute capability to compile our int8 kernel for.
    """

    compute_capabilities: tuple[tuple[int, int], ...] = ()
    optimization_level: int | None = None
    hardware_compatibility: str | None = None
    version_compatible: bool = False
    refit: bool = False
    workspace_bytes: int = 0
    timing_cache: str | None = None
    plugin: str | None = None


@dataclass(frozen=True)
class PlanJob:
    """What to compile: ``library`` tensorrt or tensorrt_rtx, the graph to read, the plan to write, input shapes."""

    library: str
    onnx: str
    engine: str
    profiles: tuple[Mapping[str, Shapes], ...]
    settings: Settings


@dataclass(frozen=True)
class Outcome:
    """The result of a job: the layer list the builder logged, and the settings it held.

    ``error`` is empty, or why nothing was compiled.
    """

    layers: str = ""
    weight_bytes: int = 0
    device_bytes: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""


class BuildLog(logging.Handler):
    """Collects errors, the layer list, and the sizes of weights and device memory from a build's log."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[str] = []
        self.layers = ""
        self.weight_bytes = 0
        self.memory: dict[str, int] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Parse one message of Polygraphy or the library."""
        message = re.sub(r"^\[\w\] *", "", record.getMessage())  # Polygraphy prefixes the level
        if record.levelno >= logging.ERROR and message != _NOISE:
            self.errors.append(message.strip())
        elif message.startswith("Layers:"):
            self.layers = message
        elif message.startswith("Total Weights Memory:"):
            self.weight_bytes = int(re.sub(r"\D", "", message))
        elif memory := _DEVICE_MEMORY.match(message):  # once per profile
            kind, size = memory[1], int(memory[2])
            self.memory[kind] = max(size, self.memory.get(kind, 0))


def compile_job(job: PlanJob) -> Outcome:
    """Compile in this process, which must not have imported Polygraphy for the other library."""
    from polygraphy.backend.trt import engine_bytes_from_network
    from polygraphy.exception import PolygraphyException

    log = _listen()
    held: list[dict[str, Any]] = []

    def configure(builder: tensorrt.Builder, network: tensorrt.INetworkDefinition) -> tensorrt.IBuilderConfig:
        config: tensorrt.IBuilderConfig = create_config(job)(builder, network)
        held.append(settings_held(config, _library(job)))
        return config

    try:
        plan = engine_bytes_from_network(_network(job), configure, save_timing_cache=job.settings.timing_cache)
    except PolygraphyException as error:
        return Outcome(error=first_line("\n".join(log.errors).strip() or error))
    Path(job.engine).write_bytes(plan)
    return Outcome(log.layers, log.weight_bytes, sum(log.memory.values()), held[0])


def _listen() -> BuildLog:
    """Redirect everything Polygraphy logs, including the verbose builder's layer list, to a ``BuildLog``."""
    from polygraphy.logger import G_LOGGER

    G_LOGGER.use_python_logging_system = True
    G_LOGGER.module_severity = G_LOGGER.EXTRA_VERBOSE
    logger, log = logging.getLogger("Polygraphy"), BuildLog()
    logger.handlers, logger.propagate = [log], False
    logger.setLevel(1)
    return log


def _network(job: PlanJob) -> Any:
    """Return what Polygraphy parses the graph with: its own loader, or builder, network and parser."""
    from polygraphy.backend.trt import NetworkFromOnnxPath, get_trt_logger

    if job.settings.plugin is None:
        return NetworkFromOnnxPath(job.onnx)
    import tensorrt as trt
    from polygraphy.backend.trt.util import check_onnx_parser_errors

    from engines.backends.trt.w8a16_plugin import register_plugin

    register_plugin(job.settings.plugin)
    builder = trt.Builder(get_trt_logger())
    # Ahead of time: the kernel's PTX goes into the engine, which then needs neither Python nor Triton. Polygraphy's
    # loader cannot set this flag.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.PREFER_AOT_PYTHON_PLUGINS))
    parser = trt.OnnxParser(network, get_trt_logger())
    check_onnx_parser_errors(parser, parser.parse_from_file(job.onnx))
    return builder, network, parser


def create_config(job: PlanJob) -> Any:
    """Return Polygraphy's loader of the configuration: called with builder and network, it gives the config."""
    from polygraphy.backend.tensorrt_rtx import CreateConfigRTX
    from polygraphy.backend.trt import CreateConfig, Profile

    trt, settings = _library(job), job.settings
    profiles = []
    for shapes in job.profiles:
        profile = Profile()
        for name, (smallest, usual, largest) in shapes.items():
            profile.add(name, smallest, usual, largest)
        profiles.append(profile)
    common: dict[str, Any] = {
        "profiles": profiles,
        "refittable": settings.refit,
        "version_compatible": settings.version_compatible,
        "builder_optimization_level": settings.optimization_level,
        "load_timing_cache": settings.timing_cache,
        "profiling_verbosity": trt.ProfilingVerbosity.DETAILED,
    }
    if settings.hardware_compatibility is not None:
        level = getattr(trt.HardwareCompatibilityLevel, settings.hardware_compatibility)
        common["hardware_compatibility_level"] = level
    if settings.workspace_bytes:
        common["memory_pool_limits"] = {trt.MemoryPoolType.WORKSPACE: settings.workspace_bytes}
    if job.library == "tensorrt_rtx":
        return CreateConfigRTX(compute_capabilities=settings.compute_capabilities, **common)
    return CreateConfig(**common)


def _library(job: PlanJob) -> Any:
    if job.library == "tensorrt_rtx":
        import tensorrt_rtx

        return tensorrt_rtx
    import tensorrt

    return tensorrt


def settings_held(config: tensorrt.IBuilderConfig, trt: Any) -> dict[str, Any]:
    """Return the settings as the library holds them: for the record, and to check that options arrive."""
    flags = trt.BuilderFlag.__members__.items()
    return {
        "flags": sorted(name for name, flag in flags if config.get_flag(flag)),
        "hardware_compatibility": config.hardware_compatibility_level.name,
        "optimization_level": config.builder_optimization_level,
        "profiles": config.num_optimization_profiles,
        "workspace_bytes": config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE),
    }


def main() -> None:
    """Read a job from standard input and write its outcome to standard output, which the library cannot write to."""
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what native code prints goes to standard error
    outcome = compile_job(parse(PlanJob, json.load(sys.stdin), "job"))
    with answer:
        json.dump(asdict(outcome), answer)


if __name__ == "__main__":
    main()

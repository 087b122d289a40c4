"""What TensorRT and TensorRT-RTX builds share: profiles, the compiled plan, and the layers it was compiled to."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.backends.built_engine import EngineWeight, TensorSpec, WeightStatus
from engines.backends.engine_spec import Profile
from engines.backends.trt.worker import Outcome, PlanJob, Shapes
from export import names
from graphs.base.config import parse
from graphs.base.errors import UgsepError
from graphs.base.json_text import read_json


@dataclass(frozen=True)
class Layer:
    """One layer of a compiled engine: its kernel, the constants it reads (name, type), the graph nodes in it."""

    name: str
    kind: str
    constants: tuple[tuple[str, str], ...]
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """A compiled engine: bytes of the file and of its weights, its layers, and the settings it was built with.

    ``device_bytes``: scratch and activations of one context, without weights, at the largest shapes of a profile.
    """

    bytes: int
    weight_bytes: int
    device_bytes: int
    layers: tuple[Layer, ...]
    settings: Mapping[str, Any]


def build_plan(job: PlanJob) -> Plan:
    """Compile a graph to the file ``job.engine``, through Polygraphy in a separate process.

    The layers are read from the builder's own log, which needs no GPU; an engine can be inspected only where
    it can be loaded.

    Raises:
        UgsepError: the file does not parse, the build fails, or the compiler dies; its first error is quoted.
    """
    rtx = job.library == "tensorrt_rtx"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "POLYGRAPHY_USE_TENSORRT_RTX": "1" if rtx else "0",  # the only way to tell Polygraphy
    }
    # -P: do not import from a folder named 'engines' in the user's working directory.
    done = subprocess.run(
        [sys.executable, "-P", "-m", "engines.backends.trt.worker"],
        input=json.dumps(dataclasses.asdict(job)),
        env=environment,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    name = "TensorRT-RTX" if rtx else "TensorRT"
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        if done.returncode < 0:
            last = f"it was ended by {signal.Signals(-done.returncode).name}"
        raise UgsepError(f"{job.onnx}: {name} stopped while compiling ({last}); try another precision or more memory")
    said = f"the outcome of {name}"
    outcome = parse(Outcome, read_json(done.stdout, said, "build again"), said)
    if outcome.error:
        raise UgsepError(f"{job.onnx}: {name} cannot compile it ({outcome.error}); try another precision")
    size = Path(job.engine).stat().st_size
    layers = parse_layers(outcome.layers)
    return Plan(size, outcome.weight_bytes, outcome.device_bytes, layers, outcome.settings)


def profile_shapes(inputs: tuple[TensorSpec, ...], profiles: tuple[Profile, ...]) -> tuple[Mapping[str, Shapes], ...]:
    """Return the shapes of every input in every profile; the errors of ``row_counts``."""
    return tuple({spec.name: row_counts(profile, spec) for spec in inputs} for profile in profiles)


def row_counts(profile: Profile, spec: TensorSpec) -> Shapes:
    """Return min, opt and max shape of one input; dynamic axes are called ``users`` or ``candidates``.

    Raises:
        UgsepError: a dynamic axis of another name.
    """
    counts = []
    for dim in spec.shape:
        if isinstance(dim, int):
            counts.append((dim, dim, dim))
        elif dim in ("users", "candidates"):
            rows = profile.users if dim == "users" else profile.candidates
            # A single row, fixed, is compiled to matrix-vector kernels that dequantize a whole weight first:
            # allow a second one.
            counts.append((rows.min, rows.opt, max(rows.max, 2)))
        else:
            raise UgsepError(f"input '{spec.name}': dynamic axis '{dim}'; call it 'users' or 'candidates'")
    least, usual, largest = zip(*counts, strict=True)
    return least, usual, largest


def parse_layers(log: str) -> tuple[Layer, ...]:
    """Parse the layer list the builder logs: one line per layer."""
    layers = []
    for line in log.split("\n"):  # not splitlines: names are separated by control characters
        head = re.match(r" *Name: ([^,]*), LayerType: (\w+)", line)
        if head is None:
            continue
        inside = re.search(r"Constants: \[(.*)\], Outputs: ", line)
        constants = re.findall(r"\{ Name: ([^,]+), .*?Datatype: (\w+)", inside[1] if inside else "")
        nodes = re.findall(r"\[ONNX Layer: (.*?)\](?=[\x00-\x20]*(?:\[ONNX Layer|$))", line)
        layers.append(Layer(head[1], head[2], tuple(constants), tuple(nodes)))
    return tuple(layers)


def write_layers(path: Path, layers: tuple[Layer, ...]) -> Path:
    """Write the layer list as JSON, for ``inspect`` and for people: kernel, constants by type, graph nodes."""
    path.write_text(json.dumps([dataclasses.asdict(layer) for layer in layers], indent=1) + "\n", encoding="utf-8")
    return path


def int8_statuses(
    layers: tuple[Layer, ...], weights: Mapping[str, str], plugin: frozenset[str] = frozenset()
) -> tuple[EngineWeight, ...]:
    """Return how each int8 weight runs (``weights``: name -> name of the constant that holds it now).

    Weights named in ``plugin`` were handed to our own kernel, which reads int8. Fused: the layer that reads the int8
    constant contains the GEMM. Dequantized each run: another layer dequantizes it first. Folded: no layer
    dequantizes it and no int8 constant is left.
    """
    statuses = []
    for name, held in weights.items():
        own = [layer for layer in layers if name in plugin and names.gemm_node(held) in layer.nodes]
        if own:
            statuses.append(EngineWeight(name, "fused-int8", f"{own[0].name} plugin"))
            continue
        readers = [
            layer
            for layer in layers
            if names.dequantize_node(held) in layer.nodes and any(kind == "Int8" for _, kind in layer.constants)
        ]
        gathers = [layer for layer in readers if "Gath" in layer.name]
        fused = [layer for layer in readers if names.gemm_node(held) in layer.nodes]
        status: WeightStatus = "folded-to-float"
        if fused:
            status = "fused-int8"
        elif gathers:
            status = "gathered-int8"
        elif readers:
            status = "dequantized-each-run"
        found = (fused or gathers or readers or [Layer("no int8 constant is left", "", (), ())])[0]
        statuses.append(EngineWeight(name, status, f"{found.name} {found.kind}".strip()))
    return tuple(statuses)

"""What TensorRT and TensorRT-RTX builds share: network, profiles, the plan, and the layers it was compiled to."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.backend import Fate, Profile, TensorSpec, WeightFate
from graphs.errors import UgsepError

_DEVICE_MEMORY = re.compile(r"Total (Activation|Device Persistent) Memory: (\d+) bytes")


@dataclass(frozen=True)
class Layer:
    """One layer of a compiled engine: its kernel, the constants it reads (name, type), the graph nodes in it."""

    name: str
    kind: str
    constants: tuple[tuple[str, str], ...]
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """A compiled engine: the serialized plan, its layers, the bytes of weights in it, and those a context takes.

    ``device_bytes``: scratch and activations on the GPU beside the weights, at the largest shapes of a profile.
    """

    data: memoryview
    layers: tuple[Layer, ...]
    weight_bytes: int
    device_bytes: int = 0


def build_plan(
    trt: Any,
    onnx: Path,
    inputs: tuple[TensorSpec, ...],
    profiles: tuple[Profile, ...],
    configure: Callable[[Any, Any], None],
    network_flags: int = 0,
) -> Plan:
    """Compile one ONNX file; ``configure(builder, config)`` sets what differs between the two libraries.

    The layers are read from the builder's own log, which needs no GPU; an engine can be inspected only where
    it can be loaded.

    Raises:
        UgsepError: the file does not parse or the build fails; the library's first error is quoted.
    """
    log = quiet_logger(trt)
    builder = trt.Builder(log)
    network = builder.create_network(network_flags)
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(onnx)):
        reason = first_error([parser.get_error(i).desc() for i in range(parser.num_errors)] + log.errors)
        raise UgsepError(f"{onnx}: TensorRT cannot parse it ({reason}); export the model again")
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    configure(builder, config)
    for profile in profiles:
        config.add_optimization_profile(_profile(builder, onnx, inputs, profile))
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise UgsepError(f"{onnx}: TensorRT cannot build it ({first_error(log.errors)}); try another precision")
    return Plan(memoryview(plan), parse_layers(log.layers), log.weight_bytes, sum(log.device_bytes.values()))


def row_counts(profile: Profile, spec: TensorSpec) -> tuple[list[int], list[int], list[int]]:
    """Return min, opt and max shape of one input; dynamic axes are called ``users`` or ``candidates``.

    Raises:
        UgsepError: a dynamic axis of another name.
    """
    shapes: tuple[list[int], list[int], list[int]] = ([], [], [])
    for dim in spec.shape:
        if isinstance(dim, int):
            counts = (dim, dim, dim)
        elif dim in ("users", "candidates"):
            rows = profile.users if dim == "users" else profile.candidates
            # A single row, fixed, is compiled to matrix-vector kernels that dequantize a whole weight first:
            # leave room for a second one.
            counts = (rows.min, rows.opt, max(rows.max, 2))
        else:
            raise UgsepError(f"input '{spec.name}': dynamic axis '{dim}'; call it 'users' or 'candidates'")
        for shape, count in zip(shapes, counts, strict=True):
            shape.append(count)
    return shapes


def _profile(builder: Any, onnx: Path, inputs: tuple[TensorSpec, ...], profile: Profile) -> Any:
    made = builder.create_optimization_profile()
    for spec in inputs:
        made.set_shape(spec.name, *row_counts(profile, spec))
    if not made:
        raise UgsepError(f"{onnx}: TensorRT refuses the profile {profile}; check its row counts")
    return made


def parse_layers(log: str) -> tuple[Layer, ...]:
    """Parse the layer list the builder logs: one line per layer."""
    layers = []
    for line in log.split("\n"):  # not splitlines: names are separated by control characters
        head = re.match(r"Name: ([^,]*), LayerType: (\w+)", line)
        if head is None:
            continue
        inside = re.search(r"Constants: \[(.*)\], Outputs: ", line)
        constants = re.findall(r"\{ Name: ([^,]+), .*?Datatype: (\w+)", inside[1] if inside else "")
        nodes = re.findall(r"\[ONNX Layer: (.*?)\](?=[\x00-\x20]*(?:\[ONNX Layer|$))", line)
        layers.append(Layer(head[1], head[2], tuple(constants), tuple(nodes)))
    return tuple(layers)


def write_layers(path: Path, layers: tuple[Layer, ...]) -> Path:
    """Write the layer list as JSON, for ``inspect`` and for a reader: kernel, constants by type, graph nodes."""
    path.write_text(json.dumps([dataclasses.asdict(layer) for layer in layers], indent=1) + "\n", encoding="utf-8")
    return path


def int8_fates(
    layers: tuple[Layer, ...], weights: Mapping[str, str], plugin: frozenset[str] = frozenset()
) -> tuple[WeightFate, ...]:
    """Return what became of each int8 weight (``weights``: name -> name of the constant that holds it now).

    Weights named in ``plugin`` were handed to our own kernel, which reads int8. Fused: the layer that reads the int8
    constant contains the GEMM. Dequantized each run: another layer dequantizes it first. Folded: no layer
    dequantizes it and no int8 constant is left.
    """
    fates = []
    for name, held in weights.items():
        own = [layer for layer in layers if name in plugin and f"gemm:{held}" in layer.nodes]
        if own:
            fates.append(WeightFate(name, "fused-int8", f"{own[0].name} plugin"))
            continue
        readers = [
            layer
            for layer in layers
            if f"int8:{held}" in layer.nodes and any(kind == "Int8" for _, kind in layer.constants)
        ]
        gathers = [layer for layer in readers if "Gath" in layer.name]
        fused = [layer for layer in readers if f"gemm:{held}" in layer.nodes]
        fate: Fate = "folded-to-float"
        if fused:
            fate = "fused-int8"
        elif gathers:
            fate = "gathered-int8"
        elif readers:
            fate = "dequantized-each-run"
        found = (fused or gathers or readers or [Layer("no int8 constant is left", "", (), ())])[0]
        fates.append(WeightFate(name, fate, f"{found.name} {found.kind}".strip()))
    return tuple(fates)


def first_error(errors: list[str]) -> str:
    """Return the first line a library logged as an error."""
    return errors[0].strip().splitlines()[0] if errors else "no reason given"


def quiet_logger(trt: Any) -> Any:
    """Return a logger that keeps errors, the layer list and the sizes of weights and memory, and prints nothing."""

    class Log(trt.ILogger):  # type: ignore[misc]  # the base class comes from an optional, untyped library
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.layers = ""
            self.weight_bytes = 0
            self.device_bytes: dict[str, int] = {}

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                self.errors.append(message)
            elif message.startswith("Layers:"):
                self.layers = message
            elif message.startswith("Total Weights Memory:"):
                self.weight_bytes = int(re.sub(r"\D", "", message))
            elif memory := _DEVICE_MEMORY.match(message):  # once per profile
                kind, size = memory[1], int(memory[2])
                self.device_bytes[kind] = max(size, self.device_bytes.get(kind, 0))

    return Log()

"""Find the first tensor of an engine that diverges from the FP32 reference: node, weight and error."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from engines.backends.built_engine import BuiltEngine
from engines.backends.contract import Array
from engines.backends.onnxruntime.session import import_onnxruntime, plain_settings, start_session
from engines.backends.openvino.library import core
from engines.bundle.bundle import Bundle
from engines.bundle.manifest import Engine, engine_for
from export.io import read_graph
from graphs.base.errors import UgsepError, first_line
from graphs.base.names import USER_INDEX
from graphs.base.progress import Progress, ProgressCallback, silent
from quant.requests.spec import Request

MAX_CANDIDATES = 64  # every intermediate tensor of both graphs is held at once
_OVER_LOGITS = 3.0
_TOKEN = re.compile(r"(?P<whole>.+)\[(?P<token>\d+)\]")  # what the lowering calls one token's slice of a tensor

#: (file, pinned session, feeds, tensors of the reference) -> values by the engine graph's own tensor names.
Reader = Callable[[Path, Mapping[str, Any], Mapping[str, Array], Sequence[str]], dict[str, Array]]


@dataclass(frozen=True)
class Step:
    """One tensor of the FP32 graph as the engine computes it.

    ``error`` is the RMS of the difference over the RMS of the reference, of the worst token if the engine computes
    token by token (``token``, else -1). ``weights`` are the constants its node reads.
    """

    tensor: str
    op: str
    weights: tuple[str, ...]
    error: float
    token: int = -1

    def __str__(self) -> str:
        """Return the step as one readable line."""
        where = f", token {self.token}" if self.token >= 0 else ""
        reads = f" reading {', '.join(self.weights)}" if self.weights else ""
        return f"{self.tensor} ({self.op}{reads}{where}): relative error {self.error:.3g}"


@dataclass(frozen=True)
class Bisection:
    """What comparing one side found, tensors in topological order.

    ``first`` left the bound first (None: none did), ``before`` is the last good one of those it is computed from.
    """

    side: str
    engine: str
    bound: float
    steps: tuple[Step, ...]
    first: Step | None
    before: Step | None

    @property
    def worst(self) -> Step:
        """The tensor with the largest error."""
        return max(self.steps, key=lambda s: s.error)


def bisect(
    bundle: Path,
    requests: Sequence[Path] = (),
    bound: float | None = None,
    *,
    backend: str | None = None,
    precision: str | None = None,
    seed: int = 1,
    progress: ProgressCallback = silent,
) -> list[Bisection]:
    """Compare both sides' engines with the FP32 graphs, tensor by tensor, on the first request.

    The item engine is given the reference's user state, so each side is judged separately. Reading every tensor
    keeps the runtime from fusing nodes across it; what the graph computes stays the same.

    Args:
        bundle: the bundle; the engines it serves with, or those of ``backend`` and ``precision``.
        requests: request files; random rows if empty.
        bound: largest relative error; by default three times the recipe's SQNR gate as a ratio, 10 ** (-dB / 20):
            the gate is on logits, in which the errors of the tensors on the way average out.
        backend: look at the engines of this backend.
        precision: look at the engines of this precision.
        seed: seed of the random rows.
        progress: called for every step.

    Raises:
        UgsepError: a tampered bundle, unusable requests, a bound that is not above 0, or engines whose tensors cannot
            be read.
    """
    opened = Bundle.open(bundle)
    manifest, gate = opened.manifest, opened.recipe.gates.sqnr_db
    limit = _OVER_LOGITS * 10.0 ** (-gate / 20) if bound is None else bound
    if not limit > 0:
        raise UgsepError(f"the bound is {limit}; give a relative error above 0, like 0.02")
    request = _request(opened, requests, seed)
    found: list[Bisection] = []
    state: dict[str, Array] = {}
    for done, side in enumerate(("user", "item")):
        progress(Progress("bisect", done, 2, side))
        engine = engine_for(manifest, side, backend, precision)
        reference = opened.onnx(side)
        feeds = dict(request.user) if side == "user" else {**request.items, **state}
        graph = read_graph(reference).graph
        if any(i.name == USER_INDEX for i in graph.input):
            feeds[USER_INDEX] = np.zeros(request.candidates, np.int64)
        names = [name for node in graph.node for name in node.output if name]
        expected = read_onnxruntime(reference, {}, feeds, names)
        state = {o.name: expected[o.name] for o in graph.output}
        found.append(
            compare(side, engine.built, graph, expected, _engine_tensors(bundle, engine, feeds, names), limit)
        )
    progress(Progress("bisect", 2, 2))
    return found


def compare(
    side: str,
    built: BuiltEngine,
    graph: onnx.GraphProto,
    expected: Mapping[str, Array],
    actual: Mapping[str, Array],
    bound: float,
) -> Bisection:
    """Compare tensors of the FP32 graph with the engine's, whole ones by name, slices by name and token.

    Raises:
        UgsepError: the engine's graph shares no tensor with the reference.
    """
    tokens: dict[str, dict[int, Array]] = {}
    for name, value in actual.items():
        match = _TOKEN.fullmatch(name)
        if match and name not in expected and match["whole"] in expected:
            tokens.setdefault(match["whole"], {})[int(match["token"])] = value
    constants = {t.name for t in graph.initializer}
    steps: list[Step] = []
    for node in graph.node:
        weights = tuple(name for name in node.input if name in constants)
        for name in node.output:
            if name not in expected or expected[name].dtype.kind != "f":
                continue
            step = _step(name, node.op_type, weights, expected[name], actual.get(name), tokens.get(name, {}))
            if step is not None:
                steps.append(step)
    if not steps:
        raise UgsepError(f"the {side} engine shares no tensor name with onnx/{side}.onnx; build the bundle again")
    first = next((s for s in steps if not s.error <= bound), None)
    before = _last_good(graph, first, {s.tensor: s for s in steps}) if first is not None else None
    return Bisection(side, f"{built.backend} {built.precision}", bound, tuple(steps), first, before)


def _step(
    name: str, op: str, weights: tuple[str, ...], expected: Array, whole: Array | None, slices: Mapping[int, Array]
) -> Step | None:
    if whole is not None and whole.shape == expected.shape:
        return Step(name, op, weights, relative_error(expected, whole))
    errors = {
        t: relative_error(expected[t], v)
        for t, v in slices.items()
        if t < len(expected) and v.shape == expected[t].shape
    }
    if not errors:
        return None
    token = max(errors, key=lambda t: errors[t])
    return Step(name, op, weights, errors[token], token)


def relative_error(expected: Array, actual: Array) -> float:
    """Return the RMS of the difference over that of the reference; infinite if only one is zero or not finite."""
    reference = expected.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):  # Inf - Inf is NaN, which is reported as infinite
        difference = np.sqrt(np.mean((actual.astype(np.float64) - reference) ** 2))
        scale = np.sqrt(np.mean(reference**2))
    if difference == 0:
        return 0.0
    return float(difference / scale) if scale > 0 and np.isfinite(difference) else float("inf")


def _last_good(graph: onnx.GraphProto, step: Step, steps: Mapping[str, Step]) -> Step | None:
    """Return the worst of the compared tensors that a bad one is computed from, nearest first."""
    producers = {name: node for node in graph.node for name in node.output}
    front = list(producers[step.tensor].input)
    while front:
        near = [steps[name] for name in front if name in steps]
        if near:
            return max(near, key=lambda s: s.error)
        front = [name for tensor in front if tensor in producers for name in producers[tensor].input]
    return None


def _request(bundle: Bundle, files: Sequence[Path], seed: int) -> Request:
    request = next(bundle.read_requests(files) if files else bundle.synthetic_requests(1, MAX_CANDIDATES, seed))
    return Request(request.request_id, request.user, {k: v[:MAX_CANDIDATES] for k, v in request.items.items()})


def _engine_tensors(
    bundle: Path, engine: Engine, feeds: Mapping[str, Array], names: Sequence[str]
) -> dict[str, Array]:
    readers: dict[str, tuple[str, Reader]] = {
        "onnxruntime": (".onnx", read_onnxruntime),
        "openvino": (".xml", _read_openvino),
    }
    built = engine.built
    if built.backend not in readers:
        raise UgsepError(
            f"tensors inside a {built.backend} engine cannot be read; pass --backend {' or '.join(readers)} for a "
            "bundle that holds such engines"
        )
    suffix, reader = readers[built.backend]
    file = bundle / engine.directory / f"{built.side}{suffix}"
    try:
        return reader(file, built.session, feeds, names)
    except UgsepError:
        raise
    except Exception as error:  # each runtime has its own exception classes
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
        raise UgsepError(f"{file}: {built.backend} cannot run it ({reason}); build the bundle again") from error


def read_onnxruntime(
    file: Path, session: Mapping[str, Any], feeds: Mapping[str, Array], names: Sequence[str]
) -> dict[str, Array]:
    """Return every tensor an ONNX file computes whose name, or whose token's name, is among ``names``."""
    model = read_graph(file)
    wanted = set(names)
    kept = {o.name for o in model.graph.output}
    for node in model.graph.node:
        for name in node.output:
            match = _TOKEN.fullmatch(name)
            if name not in kept and (name in wanted or (match and match["whole"] in wanted)):
                model.graph.output.append(onnx.ValueInfoProto(name=name))  # the runtime infers its type
                kept.add(name)
    kept_settings = {k: v for k, v in session.items() if k.startswith("session.") or k == "disabled_optimizers"}
    runtime = start_session(
        import_onnxruntime(), model.SerializeToString(), {**kept_settings, **plain_settings(1)}, weights=file.parent
    )
    outputs = [o.name for o in runtime.get_outputs()]
    given = {i.name: feeds[i.name] for i in runtime.get_inputs()}
    try:
        values = runtime.run(outputs, given)
    except Exception as error:  # the runtime's own kinds, for example an id outside its table
        raise UgsepError(f"{file.name}: {first_line(error)}; check the requests") from error
    return dict(zip(outputs, values, strict=True))


def _read_openvino(
    file: Path, session: Mapping[str, Any], feeds: Mapping[str, Array], names: Sequence[str]
) -> dict[str, Array]:
    """Return the tensors of an OpenVINO IR that still carry a name among ``names``."""
    openvino = core()
    model = openvino.read_model(str(file))
    wanted = set(names)
    present = {n for op in model.get_ordered_ops() for port in op.outputs() for n in port.get_names() & wanted}
    already = {n for port in model.outputs for n in port.get_names()}
    model.add_outputs(sorted(present - already))
    compiled = openvino.compile_model(model, "CPU", dict(session))
    given = {n: feeds[n] for port in compiled.inputs for n in port.get_names() if n in feeds}
    results = compiled.create_infer_request().infer(given)
    return {n: np.array(value) for port, value in results.items() for n in port.get_names() & wanted}

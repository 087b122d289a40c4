"""Run the FP32 user and item graphs over requests and collect statistics of each weight's inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from export.io import file_sha256
from graphs.base.errors import UgsepError, first_line
from graphs.base.names import USER_INDEX
from graphs.base.progress import Progress, ProgressCallback, silent
from quant.arrays import Array
from quant.calibration.statistics import Calibration, InputStatistics, Samples, SideStatistics, combine, observe
from quant.graph.gemms import Weight, load_graph, name_of, weights_of
from quant.requests.hash import SamplesHash
from quant.requests.spec import Request

#: Requests that a build and a comparison of schemes calibrate on, at most.
CALIBRATION_REQUESTS = 400

Run = Callable[[list[str], dict[str, Array]], list[Array]]  # (outputs, inputs) -> values

CHUNK_ROWS = 256  # candidates per item run: bounds the memory of the observed activations


@dataclass
class _Probe:
    """One graph with its MatMul inputs as extra outputs, and the statistics so far."""

    path: Path
    run: Run
    outputs: tuple[str, ...]
    inputs: tuple[str, ...]
    tokens: dict[str, tuple[str, int]]  # statistics key -> (tensor, tokens)
    feeds: dict[str, tuple[str, ...]]
    gram: bool
    seen: dict[str, InputStatistics] = field(default_factory=dict)

    def feed(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Run one batch, add its statistics, and return the graph's own outputs."""
        tensors = tuple(dict.fromkeys(tensor for tensor, _ in self.tokens.values()))
        names = list(dict.fromkeys((*self.outputs, *tensors)))
        values = dict(zip(names, self.run(names, inputs), strict=True))
        for key, (tensor, tokens) in self.tokens.items():
            try:
                new = observe(values[tensor], tokens, self.gram)
            except UgsepError as error:
                raise UgsepError(f"'{self.path}', tensor '{tensor}': {error}") from error
            self.seen[key] = combine((self.seen[key], new)) if key in self.seen else new
        return {name: values[name] for name in self.outputs}

    def result(self) -> SideStatistics:
        """Return the statistics collected so far."""
        return SideStatistics(file_sha256(self.path), dict(self.seen), self.feeds)


def calibrate(
    user_onnx: Path,
    item_onnx: Path,
    requests: Iterable[Request],
    *,
    threads: int = 1,
    progress: ProgressCallback = silent,
    gram: bool = False,
    synthetic: bool = False,
    every: int = 0,
    checkpoint: Callable[[Calibration], object] | None = None,
    resume: Calibration | None = None,
) -> Calibration:
    """Collect input statistics of every weight over the requests.

    Candidates run in chunks of 256, one request at a time, so memory does not grow with the data. ``gram`` adds the
    Gram matrices that gptq needs. Every ``every`` requests, and before an error in the data is raised, ``checkpoint``
    receives the statistics so far; passed as ``resume`` with the same requests, the run continues after them, with
    the same result as an uninterrupted one.

    Raises:
        UgsepError: onnxruntime is missing, the graphs do not fit the requests, no requests, NaN or Inf on the way,
            or a ``resume`` of other graphs or requests.
    """
    user, item = _probe(user_onnx, threads, gram), _probe(item_onnx, threads, gram)
    samples = SamplesHash()
    done = 0
    if resume is not None:
        done = _take_up(resume, user, item, gram)

    def keep() -> None:
        if checkpoint is not None and samples.requests > done:
            checkpoint(_calibration(user, item, samples, synthetic))

    for request in _until_broken(requests, keep):
        samples.update(request)
        if samples.requests <= done:
            if samples.requests == done and resume and samples.hexdigest() != resume.samples[0].sha256:
                raise UgsepError("the requests changed since the interrupted calibration; start over with --restart")
            continue
        observe_request(request, user, item)
        progress(Progress("calibrate", samples.requests, None, f"{samples.rows} rows"))
        if every and samples.requests % every == 0:
            keep()
    if samples.requests < done:
        raise UgsepError("there are fewer requests than the interrupted calibration saw; start over with --restart")
    if not samples.rows:
        raise UgsepError("no requests to calibrate on; give at least one with a candidate")
    progress(Progress("calibrate", samples.requests, samples.requests, f"{samples.rows} rows"))
    return _calibration(user, item, samples, synthetic)


def _until_broken(requests: Iterable[Request], keep: Callable[[], None]) -> Iterator[Request]:
    """Yield the requests; if reading them fails, keep the statistics so far before raising."""
    try:
        yield from requests
    except UgsepError:
        keep()
        raise


def _calibration(user: _Probe, item: _Probe, samples: SamplesHash, synthetic: bool) -> Calibration:
    seen = Samples(samples.hexdigest(), samples.requests, samples.rows, synthetic)
    return Calibration(user.result(), item.result(), (seen,))


def _take_up(resume: Calibration, user: _Probe, item: _Probe, gram: bool) -> int:
    for probe, side in ((user, resume.user), (item, resume.item)):
        if side.graph_sha256 != file_sha256(probe.path):
            raise UgsepError(
                f"the interrupted calibration is of another graph than '{probe.path}'; start over with --restart"
            )
        if gram and any(t.gram is None for t in side.tensors.values()):
            raise UgsepError("the interrupted calibration has no Gram matrices; start over with --restart")
        probe.seen.update(side.tensors)
    return resume.samples[0].requests


def observe_request(request: Request, user: _Probe, item: _Probe) -> None:
    """Run a request in chunks of candidates, so that the probes see its activations."""
    state = user.feed({name: request.user[name] for name in user.inputs})
    for start in range(0, request.candidates, CHUNK_ROWS):
        rows = {name: values[start : start + CHUNK_ROWS] for name, values in request.items.items()}
        feeds = {**rows, **state}
        if USER_INDEX in item.inputs:
            count = min(CHUNK_ROWS, request.candidates - start)
            feeds[USER_INDEX] = np.zeros(count, np.int64)
        item.feed({name: feeds[name] for name in item.inputs})


def _probe(path: Path, threads: int, gram: bool) -> _Probe:
    model = load_graph(path)
    graph = model.graph
    outputs, inputs = tuple(map(name_of, graph.outputs)), tuple(map(name_of, graph.inputs))
    tokens: dict[str, tuple[str, int]] = {}
    feeds: dict[str, tuple[str, ...]] = {}
    for weight in weights_of(model):
        if weight.kind == "matmul" and not weight.refusal:
            keys = dict(_keys(weight))
            feeds[weight.name] = tuple(keys)
            tokens.update(keys)
    observed = {tensor for tensor, _ in tokens.values()} - {*outputs, *inputs}
    for value in [v for node in graph for v in node.outputs if v.name in observed]:
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), None
        graph.outputs.append(value)
    run = session(model, path, threads)

    def with_inputs(names: list[str], values: dict[str, Array]) -> list[Array]:
        # A graph input that feeds a MatMul directly cannot be an output: pass it through.
        computed = [n for n in names if n not in values]
        results = dict(zip(computed, run(computed, values), strict=True)) if computed else {}
        return [results[n] if n in results else values[n] for n in names]

    return _Probe(path, with_inputs, outputs, inputs, tokens, feeds, gram)


def _keys(weight: Weight) -> Iterator[tuple[str, tuple[str, int]]]:
    tokens = weight.shape[0] if len(weight.shape) == 3 else 0
    for tensor in weight.inputs:
        yield (f"{tensor}@{tokens}" if tokens else tensor), (tensor, tokens)


def session(model: ir.Model, path: Path, threads: int) -> Run:
    """Load a graph in onnxruntime on the CPU; its external data is next to ``path``.

    Raises:
        UgsepError: onnxruntime is missing or refuses the graph; the returned function raises it for bad inputs.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise UgsepError("running the graphs needs onnxruntime; pip install 'ugsep[cpu]'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors are raised, once, as one line
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    try:
        loaded = onnxruntime.InferenceSession(
            ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's own exception classes share no base but Exception
        raise UgsepError(
            f"'{path}' does not load in onnxruntime ({first_line(error)[:200]}); export the model again"
        ) from error

    def run(names: list[str], values: dict[str, Array]) -> list[Array]:
        try:
            result: list[Any] = loaded.run(names, values)
        except Exception as error:  # see above
            raise UgsepError(
                f"'{path}' does not run on these requests ({first_line(error)[:200]}); "
                "give requests that the model can score, ids within its tables among them"
            ) from error
        return result

    return run

"""Send mutated requests to a running server and judge every answer."""

from __future__ import annotations

import http.client
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc
import numpy as np

from benchmarks.serving.fuzz.grpc_requests import mutate_grpc, read_grpc, read_grpc_answer, valid_grpc
from benchmarks.serving.fuzz.http_requests import mutate_http, read_answer, read_http, valid_http
from benchmarks.serving.fuzz.valid import Array, Sent, random_tensors, reference_scores
from engines import Ranker

__all__ = ["Findings", "Target", "fuzz"]

PATIENCE = 30.0  # seconds after which an answer counts as lost
TOLERANCE = 1e-4  # of a score: a request of several users may run on another variant of the engine
#: The codes of sound answers. A mutation may give a request a timeout that it cannot meet.
HTTP_CODES = {200, 400, 404, 405, 408, 413, 504}
GRPC_CODES = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"}


@dataclass(frozen=True)
class Target:
    """A running server, and the ranker of the bundle it serves; ``table_rows`` are the bundle's vocabularies."""

    host: str
    http_port: int
    grpc_port: int
    model: str
    ranker: Ranker
    table_rows: Mapping[str, int]


@dataclass
class Findings:
    """How many answers had each code, and one line for each answer that was wrong."""

    codes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def fuzz(target: Target, count: int, seed: int, progress: Callable[[int], None] = lambda done: None) -> Findings:
    """Send ``count`` mutated requests, half of them over gRPC; every 50th is left as it is, and must be scored."""
    findings = Findings()
    rng = np.random.default_rng(seed)
    with _http(target) as over_http, _grpc(target) as over_grpc:
        for number in range(count):
            users = 1 if rng.random() < 0.7 else 2
            tensors = random_tensors(target.ranker, target.table_rows, int(rng.integers(1, 10)), users, rng)
            intact = number % 50 < 2
            send = over_http if number % 2 else over_grpc
            code, outputs, sent, problem = send(tensors, intact, rng)
            findings.codes[code] += 1
            if problem is None and outputs is not None:
                problem = _compare(target.ranker, sent, outputs)
            if problem is None and intact and outputs is None:
                problem = "a valid request was refused"
            if problem is not None:
                findings.wrong.append(f"seed {seed}, request {number}: {code}: {problem}")
            if number % 100 == 0:
                progress(number)
    return findings


#: Sends one request; returns the code, the outputs if it was scored, what was sent, and what was wrong.
Answered = tuple[str, "dict[str, Array] | None", "Callable[[], Sent]", "str | None"]
Send = Callable[[Mapping[str, Array], bool, np.random.Generator], Answered]


@contextmanager
def _http(target: Target) -> Iterator[Send]:
    connection = http.client.HTTPConnection(target.host, target.http_port, timeout=PATIENCE)
    path = f"/v2/models/{target.model}/infer"

    def send(tensors: Mapping[str, Array], intact: bool, rng: np.random.Generator) -> Answered:
        request = valid_http(tensors, bool(rng.random() < 0.6), path, rng)
        if not intact:
            request = mutate_http(request, rng)
        body, headers = request.body()
        try:
            try:
                answer = _post(connection, request.path, body, headers)
            except (http.client.RemoteDisconnected, ConnectionError):
                # The server may close an idle connection at the moment at which it is used again.
                connection.close()
                answer = _post(connection, request.path, body, headers)
            content = answer.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            return "lost", None, lambda: read_http(body, headers), f"no answer: {error!r}"
        code, json_bytes = f"HTTP {answer.status}", answer.headers["Inference-Header-Content-Length"]
        problem = None if answer.status in HTTP_CODES else content.decode(errors="replace")
        if answer.status != 200:
            return code, None, lambda: read_http(body, headers), problem or _one_line(json.loads(content)["error"])
        return code, read_answer(content, json_bytes), lambda: read_http(body, headers), problem

    try:
        yield send
    finally:
        connection.close()


def _post(
    connection: http.client.HTTPConnection, path: str, body: bytes, headers: Mapping[str, str]
) -> http.client.HTTPResponse:
    connection.request("POST", path, body, dict(headers))
    return connection.getresponse()


@contextmanager
def _grpc(target: Target) -> Iterator[Send]:
    with grpc.insecure_channel(f"{target.host}:{target.grpc_port}") as channel:
        stub: Callable[..., bytes] = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")

        def send(tensors: Mapping[str, Array], intact: bool, rng: np.random.Generator) -> Answered:
            request = valid_grpc(tensors, bool(rng.random() < 0.3), target.model)
            message = request.SerializeToString() if intact else mutate_grpc(request, rng)
            started = time.monotonic()
            try:
                answer = stub(message, timeout=PATIENCE)
            except grpc.RpcError as error:
                code = error.code().name if time.monotonic() - started < PATIENCE else "lost"
                problem = _one_line(error.details()) if code in GRPC_CODES else str(error.details())
                return code, None, lambda: read_grpc(message), problem
            return "OK", read_grpc_answer(answer), lambda: read_grpc(message), None

        yield send


def _one_line(text: str | None) -> str | None:
    return None if text and text.isprintable() else f"the error is not one printable line: {text!r}"


def _compare(ranker: Ranker, read: Callable[[], Sent], outputs: Mapping[str, Array]) -> str | None:
    """Compare the scores of an accepted request with those of what it says."""
    try:
        sent = read()
        expected = reference_scores(ranker, sent.tensors)
    except Exception as error:
        return f"accepted, but {type(error).__name__}: {error}"
    wanted = sent.outputs or tuple(expected)
    if tuple(outputs) != wanted:
        return f"outputs {list(outputs)}, asked for {list(wanted)}"
    for name, scores in outputs.items():
        if scores.shape != expected[name].shape or not np.allclose(scores, expected[name], TOLERANCE, TOLERANCE):
            return f"wrong scores of '{name}'"
    return None

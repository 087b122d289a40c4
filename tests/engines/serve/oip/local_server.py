"""Both protocols on loopback in this process, over a real bundle, without the rest of a server."""

from __future__ import annotations

import http.client
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from engines import Ranker
from engines.bundle.manifest import read_manifest
from engines.serve.core.lifecycle import Lifecycle
from engines.serve.core.model_slot import ModelSlot
from engines.serve.core.outcome import code_of
from engines.serve.core.scheduler import Scheduler
from engines.serve.core.served_bundle import ServedBundle
from engines.serve.listen.http_listener import HttpListener, bind
from engines.serve.observe.latency_window import LatencyWindow
from engines.serve.observe.log import make_log
from engines.serve.observe.metrics import Metrics
from engines.serve.oip import open_inference_pb2 as pb
from engines.serve.oip.grpc_server import start_grpc
from engines.serve.oip.http.app import make_app
from engines.serve.oip.http.direct import DirectInfer
from engines.serve.oip.signature import Signatures, datatype_of
from engines.serve.running.context import ServerContext
from engines.serve.settings import ServeSettings

VERSION = "0123456789ab"
PATIENCE = 30.0  # seconds for what takes milliseconds on an idle machine
Tensors = Mapping[str, NDArray[np.generic]]


def load(bundle: Path, version: str = VERSION, name: str = "tiny") -> ServedBundle:
    return ServedBundle(name, version, bundle, read_manifest(bundle), Ranker.from_bundle(bundle))


@dataclass
class LocalServer:
    context: ServerContext
    signatures: Signatures
    http_port: int
    grpc_port: int
    bugs: list[BaseException]

    @property
    def ranker(self) -> Ranker:
        return self.context.slot.current().ranker

    def http(self, timeout: float = PATIENCE) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=timeout)

    def get(self, path: str) -> tuple[int, Any]:
        status, _, body = self.send("GET", path)
        return status, json.loads(body)

    def answered(self, code: int) -> int:
        """Return how many requests were answered with a status."""
        lines = self.context.metrics.render()[0].decode().splitlines()
        counts = [line for line in lines if line.startswith("ugsep_requests_total{") and f'code="{code}"' in line]
        return sum(int(float(line.rpartition(" ")[2])) for line in counts)

    def send(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        connection = self.http()
        try:
            connection.request(method, path, body, dict(headers or {}))
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def infer(
        self, body: bytes, json_bytes: int | None = None, model: str = "tiny", **headers: str
    ) -> tuple[int, Any]:
        """Send an HTTP request; the answer's JSON has the arrays of binary outputs under 'arrays'."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if json_bytes is not None:
            given["Inference-Header-Content-Length"] = str(json_bytes)
        status, got, content = self.send("POST", f"/v2/models/{model}/infer", body, given)
        return status, read_answer(got.get("Inference-Header-Content-Length"), content)

    def call(
        self, method: str, message: bytes, timeout: float | None = PATIENCE, metadata: Sequence[tuple[str, str]] = ()
    ) -> bytes:
        """Call a method over gRPC with the bytes of its message."""
        with grpc.insecure_channel(f"127.0.0.1:{self.grpc_port}") as channel:
            stub: Callable[..., bytes] = channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
            return stub(message, timeout=timeout, metadata=tuple(metadata))


def read_answer(json_bytes: str | None, content: bytes) -> Any:
    """Return an answer's JSON, with the arrays of all outputs under 'arrays'."""
    end = len(content) if json_bytes is None else int(json_bytes)
    answer = json.loads(content[:end])
    arrays = {}
    for output in answer.get("outputs", ()):
        dtype = {"FP32": np.float32, "FP16": np.float16}[output["datatype"]]
        size = output.get("parameters", {}).get("binary_data_size")
        flat = np.array(output["data"], dtype) if size is None else np.frombuffer(content[end : end + size], dtype)
        end += size or 0
        arrays[output["name"]] = flat.reshape(output["shape"])
    if "outputs" in answer:
        assert end == len(content)
        answer["arrays"] = arrays
    return answer


def json_body(tensors: Tensors, **more: Any) -> bytes:
    inputs = [
        {"name": n, "shape": list(v.shape), "datatype": datatype_of(v.dtype), "data": v.ravel().tolist()}
        for n, v in tensors.items()
    ]
    return json.dumps({"inputs": inputs, **more}).encode()


def binary_body(tensors: Tensors, **more: Any) -> tuple[bytes, int]:
    inputs = [
        {
            "name": n,
            "shape": list(v.shape),
            "datatype": datatype_of(v.dtype),
            "parameters": {"binary_data_size": v.nbytes},
        }
        for n, v in tensors.items()
    ]
    text = json.dumps({"inputs": inputs, **more}).encode()
    return text + b"".join(v.tobytes() for v in tensors.values()), len(text)


def message(tensors: Tensors, model: str = "tiny", **more: Any) -> pb.ModelInferRequest:
    made = pb.ModelInferRequest(model_name=model, **more)
    for name, value in tensors.items():
        made.inputs.add(name=name, datatype=datatype_of(value.dtype), shape=value.shape)
        made.raw_input_contents.append(value.tobytes())
    return made


@contextmanager
def serving(bundle: Path, ready: bool = True, **settings: Any) -> Iterator[LocalServer]:
    """Serve a bundle; ``settings`` are those of ``ServeSettings``."""
    made = ServeSettings(bundle, http_port=0, grpc_port=0, **settings)
    slot, metrics, window = ModelSlot(), Metrics(), LatencyWindow()
    bugs: list[BaseException] = []
    scheduler = Scheduler(
        slot,
        workers=made.workers,
        queue=made.queue,
        on_outcome=(metrics.observe, window.record),
        on_refusal=lambda error, traceparent: metrics.refused(error, code_of(error)),
        on_bug=bugs.append,
    )
    log, _ = make_log(io.StringIO())
    context = ServerContext(made, slot, scheduler, Lifecycle(), metrics, window, log)
    if ready:
        slot.switch(load(bundle))
        context.lifecycle.change("ready")
    scheduler.start()
    signatures = Signatures()
    app = make_app(context, signatures)
    over_http = HttpListener(app, bind("127.0.0.1", 0), made.body_timeout, DirectInfer(context, signatures))
    over_http.start()
    over_grpc = start_grpc(context, signatures, "127.0.0.1", 0)
    try:
        yield LocalServer(context, signatures, over_http.port, over_grpc.port, bugs)
    finally:
        over_grpc.stop(0.0)
        scheduler.close()
        over_http.close(1.0)
        slot.close(PATIENCE)

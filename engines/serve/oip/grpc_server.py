"""The gRPC side of the Open Inference Protocol: a synchronous server with as many threads as requests may wait."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from engines.serve.errors import DeadlineExceeded, NotReady, QueueFull
from engines.serve.oip import open_inference_pb2 as pb
from engines.serve.oip.grpc_codec import MessageCache, encode_message
from engines.serve.oip.infer_job import Call, Codec, InferJob
from engines.serve.oip.metadata import EXTENSIONS, SERVER_NAME, model_config, model_metadata, server_version
from engines.serve.oip.refusals import BodyTooSlow, refusal
from engines.serve.oip.signature import Signature, Signatures
from engines.serve.running.context import ServerContext
from engines.serve.settings import address
from graphs.base.errors import UgsepError

__all__ = ["GrpcServer", "start_grpc"]

SERVICE = "inference.GRPCInferenceService"
#: Threads beyond those that wait for scores: they refuse, and answer health checks.
_SPARE = 16
_MOST_THREADS = 512
#: Calls that may wait for a spare thread, so that they get a refusal of ours: grpc's own does not say when to retry.
_BACKLOG = 1024
_LONGEST_KEY = 512
_HEADERS = ("x-user-key", "traceparent")
_ENVELOPE_BYTES = 64 << 10  # names and shapes beside the tensors that --max-body allows


@dataclass(frozen=True)
class GrpcServer:
    """A started server and its port."""

    port: int
    server: grpc.Server
    threads: ThreadPoolExecutor
    health: health.HealthServicer
    slow: _SlowCallers

    def stop(self, grace: float) -> None:
        """Accept no calls from now on, wait for running ones up to ``grace`` seconds, and cancel the rest."""
        self.health.enter_graceful_shutdown()
        self.server.stop(grace).wait()
        self.slow.stop()
        self.threads.shutdown(wait=False, cancel_futures=True)


def start_grpc(context: ServerContext, signatures: Signatures, host: str, port: int) -> GrpcServer:
    """Start serving; port 0 is any free one.

    Raises:
        UgsepError: the port is in use, or the address is not this machine's.
    """
    settings = context.settings
    most = min(settings.queue + settings.workers, _MOST_THREADS)
    threads = ThreadPoolExecutor(most + _SPARE, thread_name_prefix="ugsep-grpc")
    largest = min(settings.max_body + _ENVELOPE_BYTES, (1 << 31) - 1)
    server = grpc.server(
        threads,
        options=[
            ("grpc.max_receive_message_length", largest),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),  # or a second server would share the port instead of failing
        ],
        maximum_concurrent_rpcs=most + _SPARE + _BACKLOG,
    )
    slow = _SlowCallers(settings.body_timeout)
    calls = _Calls(context, signatures, slow, _Places(most))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, calls.handlers()),))
    states = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(states, server)
    where = address(host, port)
    try:
        bound = server.add_insecure_port(where)
    except RuntimeError as error:
        threads.shutdown(wait=False)
        raise UgsepError(
            f"cannot listen on {where} for gRPC; is the port in use? choose another --grpc-port"
        ) from error
    server.start()
    slow.start()

    def show(state: str) -> None:
        serving = (
            health_pb2.HealthCheckResponse.SERVING if state == "ready" else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        states.set("", serving)
        states.set(SERVICE, serving)

    context.lifecycle.on_change(show)
    return GrpcServer(bound, server, threads, states, slow)


class _SlowCallers:
    """Cancels calls whose message does not arrive in time, since each of them holds a thread."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._waiting: dict[grpc.ServicerContext, float] = {}  # until when, a time of time.monotonic()
        self._stopped = threading.Event()

    def read(self, messages: Iterator[bytes], rpc: grpc.ServicerContext) -> bytes:
        """Return a call's message.

        Raises:
            BodyTooSlow: it did not arrive in time, or the caller gave up.
            UgsepError: the call ended without one.
        """
        self._waiting[rpc] = time.monotonic() + self._timeout
        try:
            return next(messages)
        except StopIteration as error:
            raise UgsepError("the call has no message; send one ModelInferRequest") from error
        except grpc.RpcError as error:
            raise BodyTooSlow(f"the message was not complete after {self._timeout:g} s, or was given up") from error
        finally:
            del self._waiting[rpc]

    def start(self) -> None:
        """Start watching."""
        threading.Thread(target=self._watch, name="ugsep-grpc-watch", daemon=True).start()

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()

    def _watch(self) -> None:
        while not self._stopped.wait(min(1.0, self._timeout / 4)):
            now = time.monotonic()
            for rpc, until in self._waiting.copy().items():
                if now > until:
                    rpc.cancel()


class _Places:
    """As many inference calls as there are threads for them may be open, so that the spare ones are never taken."""

    def __init__(self, most: int) -> None:
        self.most, self._open = most, 0
        self._lock = threading.Lock()

    def take(self) -> bool:
        """Return whether there was a place; ``leave`` gives it back."""
        with self._lock:
            if self._open >= self.most:
                return False
            self._open += 1
            return True

    def leave(self) -> None:
        """Give a place back."""
        with self._lock:
            self._open -= 1


class _Calls:
    """The calls of the service; requests arrive as bytes, so that a refusal costs no parsing."""

    def __init__(self, context: ServerContext, signatures: Signatures, slow: _SlowCallers, places: _Places) -> None:
        self._context, self._signatures, self._slow, self._places = context, signatures, slow, places
        self._messages = MessageCache()

    def handlers(self) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        """Return the handlers by method."""
        plain: dict[str, tuple[type[Message], Callable[[Any], Message]]] = {
            "ServerLive": (pb.ServerLiveRequest, lambda request: pb.ServerLiveResponse(live=True)),
            "ServerReady": (pb.ServerReadyRequest, self._server_ready),
            "ModelReady": (pb.ModelReadyRequest, self._model_ready),
            "ServerMetadata": (pb.ServerMetadataRequest, self._server_metadata),
            "ModelMetadata": (pb.ModelMetadataRequest, self._model_metadata),
            "ModelConfig": (pb.ModelConfigRequest, self._model_config),
        }
        made: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            name: grpc.unary_unary_rpc_method_handler(partial(self._plain, request, answer))
            for name, (request, answer) in plain.items()
        }
        # As a stream of one message, which is the same on the wire: the handler runs before the message is read.
        return {**made, "ModelInfer": grpc.stream_unary_rpc_method_handler(self._infer)}

    def _plain(
        self, kind: type[Message], answer: Callable[[Any], Message], message: bytes, rpc: grpc.ServicerContext
    ) -> bytes:
        try:
            try:
                request = kind.FromString(message)
            except Exception as error:
                raise UgsepError(f"the message is no {kind.DESCRIPTOR.name}") from error
            return answer(request).SerializeToString()
        except Exception as error:
            return self._refuse(error, rpc)

    def _server_ready(self, request: pb.ServerReadyRequest) -> Message:
        return pb.ServerReadyResponse(ready=self._context.lifecycle.ready)

    def _model_ready(self, request: pb.ModelReadyRequest) -> Message:
        self._model(request.name, request.version)
        return pb.ModelReadyResponse(ready=self._context.lifecycle.ready)

    def _server_metadata(self, request: pb.ServerMetadataRequest) -> Message:
        return pb.ServerMetadataResponse(name=SERVER_NAME, version=server_version(), extensions=EXTENSIONS)

    def _model_metadata(self, request: pb.ModelMetadataRequest) -> Message:
        model = model_metadata(*self._model(request.name, request.version))
        described = pb.ModelMetadataResponse(name=model.name, versions=model.versions, platform=model.platform)
        for tensors, target in ((model.inputs, described.inputs), (model.outputs, described.outputs)):
            for tensor in tensors:
                target.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        return described

    def _model_config(self, request: pb.ModelConfigRequest) -> Message:
        config = model_config(*self._model(request.name, request.version))
        return ParseDict({"config": config}, pb.ModelConfigResponse())

    def _model(self, name: str, version: str) -> tuple[Signature, bool]:
        signature = self._signatures.of(self._context.slot.current())
        return signature, signature.is_user_model(name, version)

    def _infer(self, messages: Iterator[bytes], rpc: grpc.ServicerContext) -> bytes:
        places = self._places
        if not places.take():
            wait = self._context.scheduler.retry_seconds()
            full = QueueFull(f"{places.most} calls are open, as many as have a thread; retry in {wait} s", wait)
            self._context.refused(full, traceparent=_headers(rpc).get("traceparent", ""))
            return self._refuse(full, rpc)
        try:
            return self._admitted(messages, rpc)
        finally:
            places.leave()

    def _admitted(self, messages: Iterator[bytes], rpc: grpc.ServicerContext) -> bytes:
        headers = _headers(rpc)
        traceparent = headers.get("traceparent", "")
        try:
            self._context.scheduler.check(traceparent)
            message = self._slow.read(messages, rpc)
            result = self._scored(message, headers.get("x-user-key", ""), traceparent, rpc)
        except UgsepError as error:
            if not isinstance(error, (NotReady, QueueFull)):  # the scheduler counts those itself
                self._context.refused(error, refusal(error).http, traceparent)
            result = error
        except Exception as error:
            self._context.log.bug(error)
            result = error
        return self._refuse(result, rpc) if isinstance(result, Exception) else result

    def _scored(self, message: bytes, key: str, traceparent: str, rpc: grpc.ServicerContext) -> bytes | Exception:
        """Queue the request and wait for its answer; the thread is one of a bounded number."""
        context = self._context
        answered: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()
        remaining = rpc.time_remaining()
        timeout = 0.0 if remaining is None or math.isinf(remaining) else max(remaining, 1e-9)
        call = Call(time.monotonic(), timeout, key, traceparent)
        codec = Codec(partial(self._messages.decode, message), encode_message)
        job = InferJob(call, codec, self._signatures, answered.put, context.settings.request_timeout)

        def ended() -> None:
            job.abandon()  # nobody waits any more: a worker that comes to it need not score
            answered.put(DeadlineExceeded("the caller cancelled the request, or its deadline passed"))

        if not rpc.add_callback(ended):
            raise DeadlineExceeded("the caller cancelled the request before it was queued")
        context.scheduler.submit(job, here=True)  # this thread has nothing else to do
        return answered.get()

    def _refuse(self, error: Exception, rpc: grpc.ServicerContext) -> bytes:
        refused = refusal(error)
        rpc.set_code(getattr(grpc.StatusCode, refused.grpc))
        rpc.set_details(refused.line)
        if refused.retry_after:
            rpc.set_trailing_metadata((("retry-after", str(refused.retry_after)),))
        return b""


def _headers(rpc: grpc.ServicerContext) -> dict[str, str]:
    """Return the metadata of a call that matters."""
    return {name: _text(value) for name, value in rpc.invocation_metadata() if name in _HEADERS}


def _text(value: str | bytes) -> str:
    return (value if isinstance(value, str) else value.decode("latin-1"))[:_LONGEST_KEY]

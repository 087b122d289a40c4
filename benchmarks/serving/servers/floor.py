"""The least that a Python server can add: it knows its requests by heart, and only scores and sends bytes.

``python -m benchmarks.serving.servers.floor BUNDLE CANDIDATES USERS SEED HTTP_PORT GRPC_PORT`` serves the requests
of ``make_pool``: over HTTP by a bare asyncio protocol with one worker thread, over gRPC by a bare handler of
grpcio, which scores in the thread that calls it. It reads the bytes that 'ugsep serve' reads, calls the same
ranker, and sends about as many bytes, but parses, checks, counts and refuses nothing. What 'ugsep serve' adds
beyond this is its own; the rest is asyncio's, grpcio's and the system's.
"""

from __future__ import annotations

import asyncio
import json
import queue
import sys
import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc

from benchmarks.serving.load.http_load import Address
from benchmarks.serving.load.pool import Entry, bundle_version, make_pool
from benchmarks.serving.load.wire import LENGTH
from benchmarks.serving.servers.process import HOST, Server, free_ports
from engines.serve.oip import open_inference_pb2 as pb
from engines.serve.ranker import Ranker
from graphs.base.errors import UgsepError

SERVICE, INFER = "inference.GRPCInferenceService", "ModelInfer"
_PARAMETERS = {"user_cached": True, "batch_users": 1, "queue_us": 100, "user_us": 100, "item_us": 1000}
#: The last bytes of a request tell it from the others: they are features of its last candidates.
_ENDING = 256


def floor_server(
    bundle: Path, candidates: int, users: int, seed: int, work: Path, cores: Collection[int] = ()
) -> Server:
    """Return the server as a process, not started; it listens when it is ready, and has no page that says so."""
    http, grpc_port = free_ports(2)
    given = (str(bundle), *map(str, (candidates, users, seed, http, grpc_port)))
    command = (sys.executable, "-m", "benchmarks.serving.servers.floor", *given)
    return Server(command, Address(HOST, http), Address(HOST, grpc_port), work / "floor.log", cores)


@dataclass(frozen=True)
class Known:
    """Requests by their last bytes, how long each is, and what comes before the scores in every answer."""

    entries: dict[bytes, Entry]
    length: int
    opening: bytes


def known_http(entries: Sequence[Entry], version: str) -> Known:
    """Return what is known of the pool's requests over HTTP.

    Raises:
        UgsepError: they differ in length, or not in their last bytes.
    """
    scores = next(iter(entries[0].expected.values()))
    outputs = [
        {"name": task, "datatype": "FP32", "shape": [len(v)], "parameters": {"binary_data_size": v.nbytes}}
        for task, v in scores.items()
    ]
    header = {"model_name": entries[0].model, "model_version": version, "parameters": _PARAMETERS, "outputs": outputs}
    text = json.dumps(header, separators=(",", ":")).encode()
    length = len(text) + sum(v.nbytes for v in scores.values())
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ncontent-length: {length}\r\n"
    return _known(entries, [e.http for e in entries], f"{head}{LENGTH}: {len(text)}\r\n\r\n".encode() + text)


def known_grpc(entries: Sequence[Entry], version: str) -> Known:
    """Return what is known of the pool's requests over gRPC.

    Raises:
        UgsepError: as in ``known_http``.
    """
    answer = pb.ModelInferResponse(model_name=entries[0].model, model_version=version)
    for name, value in _PARAMETERS.items():
        answer.parameters[name].int64_param = int(value)
    for task, scores in next(iter(entries[0].expected.values())).items():
        answer.outputs.add(name=task, datatype="FP32", shape=scores.shape)
    return _known(entries, [e.grpc for e in entries], bytes(answer.SerializeToString()))


def _known(entries: Sequence[Entry], requests: Sequence[bytes], opening: bytes) -> Known:
    by_ending = {request[-_ENDING:]: entry for request, entry in zip(requests, entries, strict=True)}
    lengths = {len(request) for request in requests}
    if len(by_ending) != len(requests) or len(lengths) != 1:
        raise UgsepError("the requests do not have one length and endings of their own; take another seed")
    return Known(by_ending, lengths.pop(), opening)


class HttpFloor(asyncio.Protocol):
    """One connection: a request is whole when as many bytes have come as every request has."""

    def __init__(self, known: Known, score: Callable[[Entry, Callable[[bytes], None]], None]) -> None:
        self._known, self._score = known, score
        self._received: list[bytes] = []
        self._missing = known.length

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the connection."""
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Score a whole request."""
        self._received.append(data)
        self._missing -= len(data)
        if self._missing <= 0:
            request = b"".join(self._received)
            self._received, self._missing = [], self._known.length
            self._score(self._known.entries[request[-_ENDING:]], self._transport.write)


async def serve(bundle: Path, entries: Sequence[Entry], http_port: int, grpc_port: int) -> None:
    """Serve until the process is ended."""
    version = bundle_version(bundle)
    http, over_grpc = known_http(entries, version), known_grpc(entries, version)
    ranker = Ranker.from_bundle(bundle)  # threads as pinned, as in 'ugsep serve'
    waiting: queue.SimpleQueue[tuple[Entry, Callable[[bytes], None]]] = queue.SimpleQueue()
    loop = asyncio.get_running_loop()

    def work() -> None:
        while True:
            entry, write = waiting.get()
            raw = b"".join(v.tobytes() for v in ranker.score(entry.user, entry.items).values())
            loop.call_soon_threadsafe(write, http.opening + raw)

    def infer(message: bytes, rpc: grpc.ServicerContext) -> bytes:
        entry = over_grpc.entries[message[-_ENDING:]]
        raw = [v.tobytes() for v in ranker.score(entry.user, entry.items).values()]
        return over_grpc.opening + bytes(pb.ModelInferResponse(raw_output_contents=raw).SerializeToString())

    threading.Thread(target=work, daemon=True).start()
    options = [("grpc.max_receive_message_length", -1)]
    server = grpc.server(ThreadPoolExecutor(16), options=options)
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {INFER: grpc.unary_unary_rpc_method_handler(infer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_insecure_port(f"{HOST}:{grpc_port}")
    server.start()
    listening = await loop.create_server(lambda: HttpFloor(http, lambda *job: waiting.put(job)), HOST, http_port)
    await listening.serve_forever()


def main(bundle: str, candidates: str, users: str, seed: str, http_port: str, grpc_port: str) -> None:
    """Make the pool that the campaign has, and serve it."""
    pool = make_pool([Path(bundle)], int(users), int(candidates), seed=int(seed))
    asyncio.run(serve(Path(bundle), pool.entries, int(http_port), int(grpc_port)))


if __name__ == "__main__":
    main(*sys.argv[1:])

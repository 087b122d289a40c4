"""Bodies of inference requests as the server decodes them: JSON, JSON with binary tensors, gRPC messages."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from benchmarks.reliability.fuzz.guided.parser import Parser, joined, parted
from benchmarks.reliability.fuzz.guided.parsers.sound import ITEM, TASK, USER, sound_arrays, sound_manifest
from benchmarks.serving.fuzz.grpc_requests import mutate_grpc, valid_grpc
from benchmarks.serving.fuzz.http_requests import HttpRequest, mutate_http, valid_http
from engines.serve.core.served_bundle import ServedBundle
from engines.serve.oip import open_inference_pb2 as pb
from engines.serve.oip.grpc_codec import MessageCache
from engines.serve.oip.http.codec import HeaderCache, Received, decode_body
from engines.serve.oip.request import Decoded
from engines.serve.oip.signature import Signature
from engines.serve.ranker import Ranker
from graphs.base.errors import UgsepError

__all__ = ["binary_body", "grpc_message", "json_body"]


def json_body(_: Path) -> Parser:
    """A body that is all JSON, for the ranking model and for its user graph."""
    signature = _signature()

    def parse(data: bytes) -> None:
        refused = [
            _same([partial(decode_body, Received(data, 0, None), signature, users_only, HeaderCache())])
            for users_only in (False, True)
        ]
        _refuse(refused)

    return Parser(parse, tuple(request.body()[0] for request in _requests(binary=False)), _changed_json)


def binary_body(_: Path) -> Parser:
    """A body of JSON and binary tensors: decoded the same when its JSON was not seen before and when it was."""
    signature, kept = _signature(), HeaderCache()

    def parse(data: bytes) -> None:
        text, tail = parted(data)
        length = int.from_bytes(data[:4], "little")
        refused = [
            _same(
                [
                    partial(
                        decode_body, Received(head + text + tail, len(head), length), signature, users_only, cache
                    )
                    # Behind heads of several lengths, as the connection keeps them: tensors are aligned or not.
                    for head, cache in ((b"", HeaderCache()), (b"", kept), (b"POST", kept), (b"P", kept))
                ]
            )
            for users_only in (False, True)
        ]
        _refuse(refused)

    seeds = (joined(json.dumps(r.header).encode(), b"".join(r.tail)) for r in _requests(binary=True))
    return Parser(parse, tuple(seeds), _changed_binary)


def grpc_message(_: Path) -> Parser:
    """A gRPC message: decoded the same when its head was not seen before and when it was."""
    signature, kept = _signature(), MessageCache()

    def parse(data: bytes) -> None:
        _refuse([_same([partial(cache.decode, data, signature) for cache in (MessageCache(), kept, kept)])])

    def mutate(data: bytes, rng: random.Random) -> bytes:
        return mutate_grpc(pb.ModelInferRequest.FromString(data), np.random.default_rng(rng.getrandbits(32)))

    served = signature.served
    made = [
        valid_grpc(tensors, typed, served.name if ITEM[0].name in tensors else served.user_model)
        for tensors in _tensors()
        for typed in (False, True)
    ]
    return Parser(parse, tuple(request.SerializeToString() for request in made), mutate)


def _signature() -> Signature:
    """Return the signature of the sound manifest; of its ranker, a signature reads what is given here."""
    ranker = SimpleNamespace(
        user_inputs=USER, item_inputs=ITEM, outputs=(TASK.name,), max_users=4, max_candidates=64, takes_index=True
    )
    return Signature(ServedBundle("small", "0123456789ab", Path(), sound_manifest(), cast(Ranker, ranker)))


def _tensors() -> list[dict[str, np.ndarray]]:
    users = sound_arrays(2, 2)
    return [sound_arrays(1, 1), sound_arrays(3, 5), {spec.name: users[spec.name] for spec in USER}]


def _requests(binary: bool) -> list[HttpRequest]:
    return [
        valid_http(tensors, binary, "", np.random.default_rng(seed)) for seed, tensors in enumerate(_tensors() * 3)
    ]


def _same(calls: Sequence[Callable[[], Decoded]]) -> UgsepError | None:
    """Make all calls and return the error that they end with, None if they succeed.

    Raises:
        AssertionError: they do not all return the same.
    """
    ended = [_ended(call) for call in calls]
    if any(repr(one) != repr(ended[0]) for one in ended[1:]):
        raise AssertionError("a request is decoded otherwise when its head was seen before")
    return ended[0] if isinstance(ended[0], UgsepError) else None


def _ended(call: Callable[[], Decoded]) -> Any:
    try:
        found = call()
    except UgsepError as error:
        return error
    index = None if found.user_index is None else _plain({"": found.user_index})
    return found.users_only, _plain(found.user), _plain(found.items), index, found.timeout, found.reply


def _plain(arrays: Mapping[str, np.ndarray]) -> list[tuple[str, str, tuple[int, ...], bytes]]:
    return sorted((name, value.dtype.str, value.shape, value.tobytes()) for name, value in arrays.items())


def _refuse(errors: Sequence[UgsepError | None]) -> None:
    """Refuse an input that no call accepted."""
    found = [error for error in errors if error is not None]
    if len(found) == len(errors):
        raise found[0]


def _changed_json(data: bytes, rng: random.Random) -> bytes:
    request = mutate_http(HttpRequest(json.loads(data), [], False), np.random.default_rng(rng.getrandbits(32)))
    return request.body()[0]


def _changed_binary(data: bytes, rng: random.Random) -> bytes:
    text, tail = parted(data)
    header = json.loads(text)
    pieces, start = [], 0
    for size in (given["parameters"]["binary_data_size"] for given in header["inputs"]):
        pieces.append(tail[start : start + size])
        start += size
    request = mutate_http(HttpRequest(header, pieces, True), np.random.default_rng(rng.getrandbits(32)))
    body, headers = request.body()
    given = headers["Inference-Header-Content-Length"]
    length = int(given) if given.isdecimal() and given.isascii() else len(body)
    return min(max(length, 0), 2**32 - 1).to_bytes(4, "little") + body

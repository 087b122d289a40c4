"""Bodies of HTTP inference answers: JSON, or JSON followed by binary tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import msgspec
import numpy as np

from engines.backends.contract import Array
from engines.serve.core.job import Answer
from engines.serve.oip.request import Reply
from engines.serve.oip.signature import datatype_of

__all__ = ["AnswerCache", "Body", "encode_answer"]

_MOST = 256


class Body(NamedTuple):
    """The body of an answer; ``json_bytes`` is the length of its JSON if binary tensors follow, else None."""

    content: bytes
    json_bytes: int | None


@dataclass(frozen=True, slots=True)
class _Text:
    """All of an answer's JSON but its parameters, for a reply and outputs with these names, dtypes and shapes."""

    opening: bytes
    ending: bytes
    reply: Reply
    version: str
    outputs: tuple[tuple[str, np.dtype[np.generic], tuple[int, ...]], ...]

    def describes(self, version: str, values: dict[str, Array]) -> bool:
        """Tell whether the text is that of these outputs of a version."""
        if version != self.version or len(values) != len(self.outputs):
            return False
        for (name, value), (known, dtype, shape) in zip(values.items(), self.outputs, strict=True):
            if name != known or value.shape != shape or value.dtype != dtype:
                return False
        return True


class AnswerCache:
    """Texts of answers with all outputs in binary: they differ in their parameters and the tensors only.

    Kept are those of requests without an id, up to a fixed number.
    """

    def __init__(self) -> None:
        # By the identity of the reply, which an entry keeps alive: that of a known header is always the same object.
        self._kept: dict[int, _Text] = {}

    def encode(self, answer: Answer, reply: Reply) -> Body:
        """Encode the scores, or the user graph's states."""
        if reply.id or not reply.binary or reply.outputs is not None or reply.warm_only:
            return encode_answer(answer, reply)
        values = answer.outputs
        text = self._kept.get(id(reply))
        if text is None or not text.describes(answer.served_by.version, values):
            text = _text_of(answer, reply)
            if len(self._kept) >= _MOST:
                self._kept.clear()
            self._kept[id(reply)] = text
        return _joined(answer, text.opening, text.ending, [value.tobytes() for value in values.values()])


def encode_answer(answer: Answer, reply: Reply) -> Body:
    """Encode the scores, or the user graph's states."""
    described: list[bytes] = []
    tail: list[bytes] = []
    for name, value, as_binary in reply.wanted(answer.outputs):
        head = _head(name, value)
        if as_binary:
            tail.append(value.tobytes())
            described.append(_binary(head, value))
        else:
            described.append(head + b'"data":' + msgspec.json.encode(value.ravel().tolist()) + b"}")
    return _joined(answer, _opening(answer, reply), _ending(described), tail)


def _text_of(answer: Answer, reply: Reply) -> _Text:
    described = [_binary(_head(name, value), value) for name, value in answer.outputs.items()]
    outputs = tuple((name, value.dtype, value.shape) for name, value in answer.outputs.items())
    return _Text(_opening(answer, reply), _ending(described), reply, answer.served_by.version, outputs)


def _joined(answer: Answer, opening: bytes, ending: bytes, tail: list[bytes]) -> Body:
    seconds = answer.seconds
    text = b'%b"user_cached":%b,"batch_users":%d,"queue_us":%d,"user_us":%d,"item_us":%d%b' % (
        opening,
        b"false" if answer.misses else b"true",
        answer.batch_users,
        seconds.queue * 1e6,
        seconds.user * 1e6,
        seconds.item * 1e6,
        ending,
    )
    return Body(b"".join((text, *tail)), len(text)) if tail else Body(text, None)


def _opening(answer: Answer, reply: Reply) -> bytes:
    identity = b'"id":%b,' % _quoted(reply.id) if reply.id else b""
    version = answer.served_by.version.encode()
    return b'{"model_name":%b,"model_version":"%b",%b"parameters":{' % (_quoted(reply.model), version, identity)


def _ending(described: list[bytes]) -> bytes:
    return b'},"outputs":[%b]}' % b",".join(described)


def _head(name: str, value: Array) -> bytes:
    shape = ",".join(map(str, value.shape)).encode()
    return b'{"name":%b,"datatype":"%b","shape":[%b],' % (_quoted(name), datatype_of(value.dtype).encode(), shape)


def _binary(head: bytes, value: Array) -> bytes:
    return b'%b"parameters":{"binary_data_size":%d}}' % (head, value.nbytes)


def _quoted(text: str) -> bytes:
    return msgspec.json.encode(text)

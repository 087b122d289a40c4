"""Messages of gRPC inference requests and answers, with raw or typed tensor contents."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from engines.backends.contract import Array
from engines.serve.core.job import Answer
from engines.serve.oip import open_inference_pb2 as pb
from engines.serve.oip.request import Decoded, Reply, Tensors, check_id, check_reply, raw_tensor, seconds_of
from engines.serve.oip.signature import Input, Signature, datatype_of
from graphs.base.errors import UgsepError, nearest

__all__ = ["MessageCache", "encode_message"]

#: The field of typed contents that holds each kind of number.
_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}
_PARAMETERS = ("timeout", "warm_only", "binary_data_output")
_MOST_HEADS, _LONGEST_HEAD = 1024, 8192
#: The first byte of an element of raw_input_contents: the field's number and the wire type of bytes.
_RAW_TAG = bytes([pb.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER << 3 | 2])


@dataclass(frozen=True, slots=True)
class _Content:
    """Where the bytes of one tensor are in a message: after ``opening``, their tag and length, at ``start``."""

    rule: Input
    shape: tuple[int, ...]
    elements: int
    opening: bytes
    start: int


@dataclass(frozen=True, slots=True)
class _Head:
    """All of a message but its raw contents, checked: what remains to be read are numbers at known places."""

    fixed: bytes
    contents: tuple[_Content, ...]
    users_only: bool
    timeout: float
    reply: Reply

    def decoded(self, message: bytes) -> Decoded | None:
        """Return the request if ``message``, which has the right length, has this head, else None.

        Raises:
            UgsepError: a boolean that is neither 0 nor 1.
        """
        if not message.startswith(self.fixed):
            return None
        user: dict[str, Array] = {}
        items: dict[str, Array] = {}
        index = None
        for content in self.contents:
            rule, start = content.rule, content.start
            if not message.startswith(content.opening, start - len(content.opening)):
                return None
            value = raw_tensor(rule, message, content.elements, start).reshape(content.shape)
            if rule.role == "item":
                items[rule.name] = value
            elif rule.role == "user":
                user[rule.name] = value
            else:
                index = value
        return Decoded(self.users_only, user, items, index, self.timeout, self.reply)


class MessageCache:
    """Parsed heads of messages, for one signature.

    A caller repeats all but the tensors' contents for each number of candidates, and protobuf encodes the contents
    last: a message of known length that begins with a known head has them at known places, so that most requests
    need no parser at all. Only heads without an id are kept, up to a fixed number.
    """

    def __init__(self) -> None:
        self._kept: tuple[Signature | None, dict[int, _Head]] = (None, {})

    def decode(self, message: bytes, signature: Signature) -> Decoded:
        """Decode a request.

        Raises:
            UgsepError: no ModelInferRequest, an unknown model or version, contents that contradict each other, or an
                unknown, repeated, missing or wrong tensor.
        """
        kept_for, heads = self._kept
        if kept_for is not signature:  # another bundle serves: its names and shapes may differ
            heads = {}
            self._kept = (signature, heads)  # one assignment, so that no thread sees the one without the other
        head = heads.get(len(message))
        found = None if head is None else head.decoded(message)
        if found is None:
            request = _parse(message)
            found = _decode(request, signature)
            fresh = _head(message, request, found, signature)
            if fresh is not None:
                if len(heads) >= _MOST_HEADS:
                    heads.clear()
                heads[len(message)] = fresh
        return found


def encode_message(answer: Answer, reply: Reply) -> bytes:
    """Encode the scores, or the user graph's states, with raw contents."""
    response = pb.ModelInferResponse(model_name=reply.model, model_version=answer.served_by.version, id=reply.id)
    seconds, parameters = answer.seconds, response.parameters
    parameters["user_cached"].bool_param = not answer.misses
    parameters["batch_users"].int64_param = answer.batch_users
    parameters["queue_us"].int64_param = int(seconds.queue * 1e6)
    parameters["user_us"].int64_param = int(seconds.user * 1e6)
    parameters["item_us"].int64_param = int(seconds.item * 1e6)
    for name, value, _ in reply.wanted(answer.outputs):
        response.outputs.add(name=name, datatype=datatype_of(value.dtype), shape=value.shape)
        response.raw_output_contents.append(value.tobytes())
    return response.SerializeToString()


def _parse(message: bytes) -> pb.ModelInferRequest:
    try:
        return pb.ModelInferRequest.FromString(message)
    except (DecodeError, UnicodeDecodeError) as error:
        raise UgsepError("the message is no ModelInferRequest; make it with open_inference.proto") from error


def _decode(request: pb.ModelInferRequest, signature: Signature) -> Decoded:
    users_only = signature.is_user_model(request.model_name, request.model_version)
    timeout, warm_only = _parameters(request.parameters)
    outputs = None
    if request.outputs:
        for output in request.outputs:
            if output.parameters:
                _refuse_parameters(f"output '{output.name}'", output.parameters)
        outputs = tuple((signature.output(output.name, users_only), True) for output in request.outputs)
    reply = Reply(request.model_name, check_id(request.id), outputs, True, warm_only)
    check_reply(reply, signature, users_only)
    inputs, raw = request.inputs, request.raw_input_contents
    if raw and len(raw) != len(inputs):
        raise UgsepError(f"raw_input_contents has {len(raw)} tensors, inputs has {len(inputs)}; give one for each")
    tensors = Tensors(signature, users_only)
    for at, given in enumerate(inputs):
        rule = signature.input(given.name, users_only)
        shape = tuple(given.shape)
        elements = rule.check(given.datatype, shape)
        if given.parameters:
            _refuse_parameters(f"input '{rule.name}'", given.parameters)
        if raw:
            if given.HasField("contents"):
                raise UgsepError(f"input '{rule.name}' has contents beside raw_input_contents; give one of them")
            value = _raw(rule, raw[at], elements, shape)
        else:
            value = _typed(rule, given.contents, elements, shape)
        tensors.add(rule, value)
    return tensors.decoded(timeout, reply)


def _head(message: bytes, request: pb.ModelInferRequest, decoded: Decoded, signature: Signature) -> _Head | None:
    """Return the head of a message that was decoded, or None if its raw contents are not all at its end.

    A head that can be parsed ends where a field does. So whatever contents of the same lengths follow it, the message
    is parsed into the same head and those contents.
    """
    if decoded.reply.id or not request.raw_input_contents:  # an id is likely to be another one next time
        return None
    sizes = [len(raw) for raw in request.raw_input_contents]
    openings = [_RAW_TAG + _varint(size) for size in sizes]
    ends = list(accumulate(len(opening) + size for opening, size in zip(openings, sizes, strict=True)))
    length = len(message) - ends[-1]
    fixed = message[:length]
    tail = b"".join(o + raw for o, raw in zip(openings, request.raw_input_contents, strict=True))
    if length > _LONGEST_HEAD or message[length:] != tail:
        return None
    try:
        if pb.ModelInferRequest.FromString(fixed).raw_input_contents:
            return None
    except (DecodeError, UnicodeDecodeError):
        return None
    rules = [signature.input(given.name, decoded.users_only) for given in request.inputs]
    contents = tuple(
        _Content(rule, tuple(given.shape), size // rule.dtype.itemsize, opening, length + end - size)
        for rule, given, size, opening, end in zip(rules, request.inputs, sizes, openings, ends, strict=True)
    )
    return _Head(fixed, contents, decoded.users_only, decoded.timeout, decoded.reply)


def _varint(number: int) -> bytes:
    """Return a number as protobuf encodes lengths: seven bits a byte, the lowest first."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _raw(rule: Input, content: bytes, elements: int, shape: tuple[int, ...]) -> Array:
    expected = elements * rule.dtype.itemsize
    if len(content) != expected:
        raise UgsepError(
            f"input '{rule.name}': {rule.datatype}{list(shape)} takes {expected} bytes, "
            f"but its raw_input_contents has {len(content)}"
        )
    return raw_tensor(rule, content, elements).reshape(shape)


def _typed(rule: Input, contents: pb.InferTensorContents, elements: int, shape: tuple[int, ...]) -> Array:
    wanted = _CONTENTS[rule.datatype]
    for field, _ in contents.ListFields():
        if field.name != wanted:
            raise UgsepError(f"input '{rule.name}' has {field.name}; {rule.datatype} belongs in {wanted}")
    values: Any = getattr(contents, wanted)
    if len(values) != elements:
        raise UgsepError(
            f"input '{rule.name}' has {len(values)} values in {wanted}, its shape {list(shape)} takes {elements}"
        )
    try:
        return np.array(values, rule.dtype).reshape(shape)
    except OverflowError as error:
        raise UgsepError(f"input '{rule.name}' has a value that {rule.datatype} cannot hold") from error


def _parameters(given: Mapping[str, pb.InferParameter]) -> tuple[float, bool]:
    """Return the timeout in seconds and ``warm_only``; answers are binary whatever ``binary_data_output`` says."""
    timeout, warm_only = 0.0, False
    for name, value in given.items():
        kind = value.WhichOneof("parameter_choice")
        if name == "timeout" and kind in ("int64_param", "uint64_param"):
            timeout = seconds_of(value.int64_param or value.uint64_param)
        elif name == "warm_only" and kind == "bool_param":
            warm_only = value.bool_param
        # Triton's clients send hints to Triton with every request, which a model of its could not refuse either.
        elif name != "binary_data_output" and not name.startswith("triton_"):
            if name in _PARAMETERS:
                raise UgsepError(
                    f"parameter '{name}' has a value of the wrong type; see the documentation of serving"
                )
            _refuse_parameters("the request", (name,), _PARAMETERS)
    return timeout, warm_only


def _refuse_parameters(owner: str, names: Iterable[str], known: tuple[str, ...] = ()) -> None:
    name = next(iter(names))
    hint = nearest(name[:80], known) if known else "; leave it out"
    raise UgsepError(f"{owner} has an unknown parameter '{name[:80]}'{hint}")

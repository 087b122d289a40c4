"""Bodies of HTTP inference requests and answers: JSON, or JSON followed by binary tensors."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from msgspec import UNSET, Raw

from engines.serve.core.job import Answer
from engines.serve.oip.http.request_json import InferJson, InputJson, numbers, parse_request
from engines.serve.oip.request import Decoded, Reply, Tensors, check_id, check_reply, raw_tensor, seconds_of
from engines.serve.oip.signature import Input, Signature, datatype_of
from graphs.base.errors import UgsepError

__all__ = ["Body", "HeaderCache", "decode_body", "decode_for", "encode_answer"]

_MOST_HEADERS, _LONGEST_HEADER = 256, 8192


@dataclass(frozen=True, slots=True)
class Body:
    """The body of an answer; ``json_bytes`` is the length of its JSON if binary tensors follow, else None."""

    content: bytes
    json_bytes: int | None


@dataclass(frozen=True, slots=True)
class _Tensor:
    """One input of a parsed header: ``size`` bytes after the JSON, or its unparsed ``data``."""

    rule: Input
    shape: tuple[int, ...]
    elements: int
    size: int
    data: Raw | None


@dataclass(frozen=True, slots=True)
class _Header:
    """A parsed and checked JSON header; ``size`` is that of all binary tensors."""

    tensors: tuple[_Tensor, ...]
    size: int
    timeout: float
    reply: Reply


class HeaderCache:
    """Parsed headers by their bytes, for one signature.

    A caller that sends binary tensors repeats the same JSON for each number of candidates, so that most requests need
    no JSON parser at all. Only headers without an id and without data are kept, up to a fixed number.
    """

    def __init__(self) -> None:
        self._kept: tuple[Signature | None, dict[tuple[bool, bytes], _Header]] = (None, {})

    def get(self, signature: Signature, users_only: bool, text: bytes) -> _Header:
        """Return the parsed header.

        Raises:
            UgsepError: it is malformed.
        """
        kept_for, headers = self._kept
        if kept_for is not signature:  # another bundle serves: its names and shapes may differ
            headers = {}
            self._kept = (signature, headers)  # one assignment, so that no thread sees the one without the other
        found = headers.get((users_only, text))
        if found is None:
            found = _parse(text, signature, users_only)
            if len(text) <= _LONGEST_HEADER and not found.reply.id and all(t.data is None for t in found.tensors):
                if len(headers) >= _MOST_HEADERS:
                    headers.clear()
                headers[users_only, text] = found
        return found


def decode_body(
    body: bytes, json_bytes: int | None, signature: Signature, users_only: bool, headers: HeaderCache
) -> Decoded:
    """Decode a request; ``json_bytes`` is the length of the JSON if the caller gave one.

    Binary tensors become views of ``body`` where their place in it is aligned.

    Raises:
        UgsepError: malformed JSON, lengths that contradict each other, or an unknown, repeated, missing or wrong
            tensor.
    """
    if json_bytes is None:
        header, offset = _parse(body, signature, users_only), len(body)
    else:
        if json_bytes > len(body):
            raise UgsepError(
                f"Inference-Header-Content-Length is {json_bytes}, but the body has {len(body)} bytes; "
                "give the length of the JSON"
            )
        header, offset = headers.get(signature, users_only, body[:json_bytes]), json_bytes
    if header.size != len(body) - offset:
        raise UgsepError(
            f"the body has {len(body) - offset} bytes after its JSON, but its binary_data_size add up to "
            f"{header.size}; Inference-Header-Content-Length gives where the JSON ends"
        )
    tensors = Tensors(signature, users_only)
    for tensor in header.tensors:
        rule = tensor.rule
        if tensor.data is None:
            tensors.add(rule, raw_tensor(rule, body, tensor.elements, offset).reshape(tensor.shape))
            offset += tensor.size
        else:
            tensors.add(rule, numbers(rule, tensor.elements, tensor.shape, tensor.data))
    return tensors.decoded(header.timeout, header.reply)


def decode_for(
    model: str, version: str, body: bytes, json_bytes: int | None, headers: HeaderCache, signature: Signature
) -> Decoded:
    """Decode a request whose URL names a model and version, '' for any.

    Raises:
        UgsepError: as in ``decode_body``, or another model or version serves: it may have been replaced while the
            request waited.
    """
    return decode_body(body, json_bytes, signature, signature.is_user_model(model, version), headers)


def encode_answer(answer: Answer, reply: Reply) -> Body:
    """Encode the scores, or the user graph's states."""
    described: list[bytes] = []
    tail: list[bytes] = []
    for name, value, as_binary in reply.wanted(answer.outputs):
        shape = ",".join(map(str, value.shape))
        head = f'{{"name":{_text(name)},"datatype":"{datatype_of(value.dtype)}","shape":[{shape}],'
        if as_binary:
            tail.append(value.tobytes())
            described.append(f'{head}"parameters":{{"binary_data_size":{value.nbytes}}}}}'.encode())
        else:
            described.append(head.encode() + b'"data":' + msgspec.json.encode(value.ravel().tolist()) + b"}")
    seconds = answer.seconds
    json_text = (
        b'%b"parameters":{"user_cached":%b,"batch_users":%d,"queue_us":%d,"user_us":%d,"item_us":%d},"outputs":[%b]}'
        % (
            _opening(reply.model, answer.served_by.version, reply.id).encode(),
            b"false" if answer.misses else b"true",
            answer.batch_users,
            seconds.queue * 1e6,
            seconds.user * 1e6,
            seconds.item * 1e6,
            b",".join(described),
        )
    )
    return Body(b"".join((json_text, *tail)), len(json_text)) if tail else Body(json_text, None)


def _parse(text: bytes, signature: Signature, users_only: bool) -> _Header:
    request = parse_request(text)
    _check_model(request, signature, users_only)
    given = request.parameters
    timeout, as_binary, warm_only = 0.0, False, False
    if given is not UNSET:
        timeout = 0.0 if given.timeout is UNSET else seconds_of(given.timeout)
        as_binary = given.binary_data_output is True
        warm_only = given.warm_only is True
    outputs = None
    if request.outputs is not UNSET and request.outputs:
        names = [signature.output(output.name, users_only) for output in request.outputs]
        forms = [o.parameters.binary_data if o.parameters is not UNSET else UNSET for o in request.outputs]
        outputs = tuple((n, as_binary if form is UNSET else form) for n, form in zip(names, forms, strict=True))
    model = signature.served.user_model if users_only else signature.served.name
    request_id = check_id("" if request.id is UNSET else request.id)
    reply = Reply(model, request_id, outputs, as_binary, warm_only)
    check_reply(reply, signature, users_only)
    tensors = tuple(_tensor(tensor, signature, users_only) for tensor in request.inputs)
    return _Header(tensors, sum(t.size for t in tensors), timeout, reply)


def _tensor(given: InputJson, signature: Signature, users_only: bool) -> _Tensor:
    rule = signature.input(given.name, users_only)
    elements = rule.check(given.datatype, given.shape)
    size = UNSET if given.parameters is UNSET else given.parameters.binary_data_size
    if (size is UNSET) == (given.data is UNSET):
        both = "both 'data' and binary_data_size" if size is not UNSET else "neither 'data' nor binary_data_size"
        raise UgsepError(f"input '{rule.name}' has {both}; give one")
    if size is UNSET:
        return _Tensor(rule, tuple(given.shape), elements, 0, given.data if given.data is not UNSET else None)
    expected = elements * rule.dtype.itemsize
    if size != expected:
        raise UgsepError(
            f"input '{rule.name}': {rule.datatype}{given.shape} takes {expected} bytes; its binary_data_size differs"
        )
    return _Tensor(rule, tuple(given.shape), elements, expected, None)


def _check_model(request: InferJson, signature: Signature, users_only: bool) -> None:
    """Reject a body whose model is another than that of its URL."""
    served = signature.served
    expected = served.user_model if users_only else served.name
    if request.model_name not in (UNSET, expected) or request.model_version not in (UNSET, "", served.version):
        raise UgsepError("model_name or model_version in the body differs from the URL; leave them out of the body")


def _opening(model: str, version: str, request_id: str) -> str:
    return f'{{"model_name":{_text(model)},"model_version":"{version}",' + (
        f'"id":{_text(request_id)},' if request_id else ""
    )


def _text(value: str) -> str:
    return msgspec.json.encode(value).decode()

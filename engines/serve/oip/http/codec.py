"""Bodies of HTTP inference requests: JSON, or JSON followed by binary tensors."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from msgspec import UNSET, Raw

from engines.serve.oip.http.request_json import InferJson, InputJson, numbers, parse_request
from engines.serve.oip.layout import Layout, layout_of
from engines.serve.oip.request import Decoded, Reply, Tensors, check_id, check_reply, raw_tensor, seconds_of
from engines.serve.oip.signature import Input, Signature
from graphs.base.errors import UgsepError

__all__ = ["HeaderCache", "Received", "decode_body", "decode_for"]

_MOST_HEADERS, _LONGEST_HEADER = 256, 8192


class Received(NamedTuple):
    """The body of a request, ``data`` from ``at``.

    ``json_bytes`` is the length of its JSON if the caller gave one.
    """

    data: bytes
    at: int
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
    """A parsed and checked JSON header; ``size`` is that of all binary tensors.

    ``layout`` says where they are, if there is nothing else to do.
    """

    tensors: tuple[_Tensor, ...]
    size: int
    timeout: float
    reply: Reply
    layout: Layout | None


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


def decode_body(received: Received, signature: Signature, users_only: bool, headers: HeaderCache) -> Decoded:
    """Decode a request.

    Binary tensors become views of ``data`` where their place in it is aligned.

    Raises:
        UgsepError: malformed JSON, lengths that contradict each other, or an unknown, repeated, missing or wrong
            tensor.
    """
    data, at, json_bytes = received
    if json_bytes is None:
        header, offset = _parse(data[at:], signature, users_only), len(data)
    else:
        offset = at + json_bytes
        if offset > len(data):
            raise UgsepError(
                f"Inference-Header-Content-Length is {json_bytes}, but the body has {len(data) - at} bytes; "
                "give the length of the JSON"
            )
        header = headers.get(signature, users_only, data[at:offset])
    if header.size != len(data) - offset:
        raise UgsepError(
            f"the body has {len(data) - offset} bytes after its JSON, but its binary_data_size add up to "
            f"{header.size}; Inference-Header-Content-Length gives where the JSON ends"
        )
    if header.layout is not None:
        user, items, index = header.layout.read(data, offset)
        return Decoded(users_only, user, items, index, header.timeout, header.reply)
    tensors = Tensors(signature, users_only)
    for tensor in header.tensors:
        rule = tensor.rule
        if tensor.data is None:
            tensors.add(rule, raw_tensor(rule, data, tensor.elements, offset).reshape(tensor.shape))
            offset += tensor.size
        else:
            tensors.add(rule, numbers(rule, tensor.elements, tensor.shape, tensor.data))
    return tensors.decoded(header.timeout, header.reply)


def decode_for(model: str, version: str, received: Received, headers: HeaderCache, signature: Signature) -> Decoded:
    """Decode a request whose URL names a model and version, '' for any.

    Raises:
        UgsepError: as in ``decode_body``, or another model or version serves: it may have been replaced while the
            request waited.
    """
    return decode_body(received, signature, signature.is_user_model(model, version), headers)


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
    ends = list(accumulate(t.size for t in tensors))
    layout = None
    if all(t.data is None for t in tensors):
        places = [(t.rule, t.shape, end - t.size) for t, end in zip(tensors, ends, strict=True)]
        layout = layout_of(signature, users_only, places, len(text))
    return _Header(tensors, ends[-1] if ends else 0, timeout, reply, layout)


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

"""The JSON of an inference request: typed, strict, and bounded before anything is allocated for it."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import msgspec
import numpy as np
from msgspec import UNSET, Raw, UnsetType

from engines.backends.contract import Array
from engines.serve.oip.signature import Input
from graphs.base.errors import UgsepError
from graphs.base.json_words import rejection

__all__ = ["InferJson", "InputJson", "numbers", "parse_request"]

_KEY = re.compile(rb'"[ \t\r\n]*:')
_DEEPEST = 8


class InputParameters(msgspec.Struct, forbid_unknown_fields=True):
    """Parameters of an input tensor: its size in bytes if it follows the JSON."""

    binary_data_size: int | UnsetType = UNSET


class InputJson(msgspec.Struct, forbid_unknown_fields=True):
    """An input tensor; ``data`` stays unparsed until its header is checked."""

    name: str
    shape: list[int]
    datatype: str
    parameters: InputParameters | UnsetType = UNSET
    data: Raw | UnsetType = UNSET


class OutputParameters(msgspec.Struct, forbid_unknown_fields=True):
    """Parameters of a requested output: whether it is wanted in binary."""

    binary_data: bool | UnsetType = UNSET


class OutputJson(msgspec.Struct, forbid_unknown_fields=True):
    """A requested output."""

    name: str
    parameters: OutputParameters | UnsetType = UNSET


class RequestParameters(msgspec.Struct, forbid_unknown_fields=True):
    """Parameters of a request: ``timeout`` in microseconds, 0 for none."""

    timeout: int | UnsetType = UNSET
    binary_data_output: bool | UnsetType = UNSET
    warm_only: bool | UnsetType = UNSET


class InferJson(msgspec.Struct, forbid_unknown_fields=True):
    """An inference request; the URL holds the model's name and version, which the body may repeat."""

    inputs: list[InputJson]
    id: str | UnsetType = UNSET
    model_name: str | UnsetType = UNSET
    model_version: str | UnsetType = UNSET
    parameters: RequestParameters | UnsetType = UNSET
    outputs: list[OutputJson] | UnsetType = UNSET


_REQUEST = msgspec.json.Decoder(InferJson)


def parse_request(text: bytes) -> InferJson:
    """Parse the JSON of a request; the data of its tensors stays unparsed.

    Raises:
        UgsepError: not JSON, an unknown, missing or repeated key, or a value of the wrong type.
    """
    try:
        request = _REQUEST.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UgsepError(f"the request's JSON: {_reason(error)}") from error
    # msgspec keeps the last of two equal keys. Every key is a string followed by a colon, so an equal count proves
    # that none is repeated. A string that holds '":' itself also makes it larger, and no sound name or id does.
    if len(_KEY.findall(text)) != _keys(request):
        raise UgsepError("the request's JSON: a key is given twice, or a string holds '\":'; send each key once")
    return request


def numbers(rule: Input, elements: int, shape: tuple[int, ...], data: Raw) -> Array:
    """Return the array of a tensor whose header was checked, from flat or nested JSON.

    Raises:
        UgsepError: not numbers (or booleans) of the tensor's datatype, or not as many as its shape says.
    """
    text = bytes(data)
    if text[:1] != b"[":
        raise UgsepError(f"input '{rule.name}': 'data' is not a list; send a list of {elements} values")
    # Counted before parsing: a list may not cost more than its shape, which the signature bounds.
    if text.count(b",") != elements - 1:
        raise UgsepError(
            f"input '{rule.name}': 'data' has {text.count(b',') + 1} values, its shape {list(shape)} {elements}"
        )
    depth = 1 if text.find(b"[", 1) < 0 else len(shape)
    try:
        values = _numbers_decoder(rule.dtype.kind, depth).decode(text)
        with np.errstate(over="ignore"):  # a float too large becomes infinite, which the checks of features refuse
            array = np.array(values, rule.dtype)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OverflowError, ValueError) as error:
        raise UgsepError(
            f"input '{rule.name}': 'data' is not {rule.datatype}{list(shape)}: {_reason(error)}"
        ) from error
    if array.shape != (shape if depth > 1 else (elements,)):
        raise UgsepError(f"input '{rule.name}': 'data' is {list(array.shape)}, its shape says {list(shape)}")
    return array.reshape(shape)


@cache
def _numbers_decoder(kind: str, depth: int) -> msgspec.json.Decoder[Any]:
    scalar: Any = {"f": float, "b": bool}.get(kind, int)
    for _ in range(min(depth, _DEEPEST)):
        scalar = list[scalar]
    return msgspec.json.Decoder(scalar)


def _keys(request: InferJson) -> int:
    """Count the keys of a parsed request, as if none had been repeated."""
    count = _present(request)
    if request.parameters is not UNSET:
        count += _present(request.parameters)
    for tensor in request.inputs:
        count += 3
        if tensor.data is not UNSET:
            count += 1
        if tensor.parameters is not UNSET:
            count += 1 if tensor.parameters.binary_data_size is UNSET else 2
    for output in request.outputs or ():
        count += 1
        if output.parameters is not UNSET:
            count += 1 if output.parameters.binary_data is UNSET else 2
    return count


def _present(struct: msgspec.Struct) -> int:
    return sum(getattr(struct, name) is not UNSET for name in struct.__struct_fields__)


def _reason(error: Exception) -> str:
    if isinstance(error, msgspec.MsgspecError):
        return rejection(error)
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8"
    return "a number is out of range" if isinstance(error, OverflowError) else "its lists differ in length"

"""Mutations of HTTP inference requests, and a plain reading of what a request says."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.serving.fuzz.valid import DTYPES, Array, Sent

__all__ = ["HttpRequest", "mutate_http", "read_answer", "read_http", "valid_http"]

NAMES = ("", "item_id", "user_index", "nothing", "a" * 3000, "ø\u202e", "\x00", 'x":1,"y', "state_model")
NUMBERS: tuple[Any, ...] = (0, 1, -1, 2, 63, 65, 2**31, 2**63 - 1, 2**63, -(2**63), 10**30, 1.5, True, None, "1", [1])
DATATYPES = ("INT64", "FP32", "FP16", "FP64", "INT32", "BOOL", "BYTES", "BF16", "", "fp32", "UINT8")
TEXTS = (
    b"",
    b"null",
    b"[]",
    b"{}",
    b"[" * 50_000,
    b'{"inputs":' * 5_000,
    b'{"inputs":[]}',
    b"\xff\xfe",
    b"NaN",
    b"1e999",
)
VALUES: tuple[Any, ...] = (float("nan"), float("inf"), 1e39, -1, 2**62, 2**64, "x", None, True, [], {}, 0.5)


@dataclass
class HttpRequest:
    """A request in parts: the JSON as a value, and the binary tensors that follow it."""

    header: dict[str, Any]
    tail: list[bytes]
    binary: bool
    text: bytes | None = None  # sent instead of the header's JSON
    cut: int | None = None  # bytes of the body to send
    length_off: int = 0  # what Inference-Header-Content-Length lies by
    headers: dict[str, str] = field(default_factory=dict)
    path: str = ""

    def body(self) -> tuple[bytes, dict[str, str]]:
        """Return the body and the headers."""
        text = json.dumps(self.header).encode() if self.text is None else self.text
        headers = dict(self.headers)
        if self.binary:
            headers.setdefault("Inference-Header-Content-Length", str(len(text) + self.length_off))
        body = text + b"".join(self.tail)
        return body[: self.cut], headers


def valid_http(tensors: Mapping[str, Array], binary: bool, path: str, rng: np.random.Generator) -> HttpRequest:
    """Return a valid request, with some of its optional parts."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    inputs: list[dict[str, Any]] = []
    for name, value in tensors.items():
        described: dict[str, Any] = {"name": name, "shape": list(value.shape), "datatype": names[value.dtype]}
        if binary:
            described["parameters"] = {"binary_data_size": value.nbytes}
        else:
            described["data"] = value.tolist() if rng.random() < 0.3 else value.ravel().tolist()
        inputs.append(described)
    header: dict[str, Any] = {"inputs": inputs}
    if rng.random() < 0.5:
        header["parameters"] = {"binary_data_output": bool(rng.random() < 0.5)}
    if rng.random() < 0.3:
        header["id"] = f"request {rng.integers(1000)}"
    return HttpRequest(header, [v.tobytes() for v in tensors.values()] if binary else [], binary, path=path)


def mutate_http(request: HttpRequest, rng: np.random.Generator) -> HttpRequest:
    """Return a copy with one to three mutations."""
    made = copy.deepcopy(request)
    for _ in range(int(rng.integers(1, 4))):
        MUTATIONS[int(rng.integers(len(MUTATIONS)))](made, rng)
    return made


def read_http(body: bytes, headers: Mapping[str, str]) -> Sent:
    """Read a body as the protocol says, without any check.

    Raises:
        Exception: it makes no sense.
    """
    length = headers.get("Inference-Header-Content-Length")
    end = len(body) if length is None else int(length)
    header = json.loads(body[:end])
    tensors = _tensors(header["inputs"], body[end:])
    return Sent(tensors, tuple(output["name"] for output in header.get("outputs") or ()))


def read_answer(body: bytes, json_bytes: str | None) -> dict[str, Array]:
    """Return the outputs of an answer."""
    end = len(body) if json_bytes is None else int(json_bytes)
    return _tensors(json.loads(body[:end])["outputs"], body[end:])


def _tensors(described: Iterable[Mapping[str, Any]], binary: bytes) -> dict[str, Array]:
    """Return tensors by name, their values in JSON or next in ``binary``."""
    found: dict[str, Array] = {}
    start = 0
    for given in described:
        dtype = DTYPES[given["datatype"]]
        if "data" in given:
            value = np.array(given["data"], dtype)
        else:
            size = given["parameters"]["binary_data_size"]
            value = np.frombuffer(binary[start : start + size], dtype)
            start += size
        found[given["name"]] = value.reshape(given["shape"])
    return found


def _pick(values: tuple[Any, ...], rng: np.random.Generator) -> Any:
    return values[int(rng.integers(len(values)))]


def _input(made: HttpRequest, rng: np.random.Generator) -> dict[str, Any]:
    inputs = made.header.get("inputs")
    if not isinstance(inputs, list) or not inputs:
        return {}
    found = inputs[int(rng.integers(len(inputs)))]
    return found if isinstance(found, dict) else {}


def _rename(made: HttpRequest, rng: np.random.Generator) -> None:
    _input(made, rng)["name"] = _pick((*NAMES, *NUMBERS), rng)


def _datatype(made: HttpRequest, rng: np.random.Generator) -> None:
    _input(made, rng)["datatype"] = _pick((*DATATYPES, 7, None), rng)


def _shape(made: HttpRequest, rng: np.random.Generator) -> None:
    shape = _input(made, rng).get("shape")
    if isinstance(shape, list) and shape and rng.random() < 0.7:
        shape[int(rng.integers(len(shape)))] = _pick(NUMBERS, rng)
    elif isinstance(shape, list):
        shape.append(_pick(NUMBERS, rng))


def _resize(made: HttpRequest, rng: np.random.Generator) -> None:
    given = _input(made, rng)
    given["parameters"] = {"binary_data_size": _pick((*NUMBERS, 8, 24, 1 << 40), rng)}


def _value(made: HttpRequest, rng: np.random.Generator) -> None:
    data = _input(made, rng).get("data")
    if isinstance(data, list) and data:
        data[int(rng.integers(len(data)))] = _pick(VALUES, rng)
    elif made.tail:
        at = int(rng.integers(len(made.tail)))
        changed = bytearray(made.tail[at])
        for _ in range(4):
            if changed:
                changed[int(rng.integers(len(changed)))] = int(rng.choice([0, 1, 127, 128, 255]))
        made.tail[at] = bytes(changed)


def _count(made: HttpRequest, rng: np.random.Generator) -> None:
    data = _input(made, rng).get("data")
    if isinstance(data, list):
        data.append(0) if rng.random() < 0.5 or not data else data.pop()
    elif made.tail:
        at = int(rng.integers(len(made.tail)))
        made.tail[at] = made.tail[at][:-1] if rng.random() < 0.5 else made.tail[at] + b"\0"


def _drop_or_repeat(made: HttpRequest, rng: np.random.Generator) -> None:
    inputs = made.header.get("inputs")
    if isinstance(inputs, list) and inputs:
        at = int(rng.integers(len(inputs)))
        inputs.pop(at) if rng.random() < 0.5 else inputs.append(inputs[at])


def _shuffle(made: HttpRequest, rng: np.random.Generator) -> None:
    inputs = made.header.get("inputs")
    if isinstance(inputs, list):
        rng.shuffle(inputs)


def _key(made: HttpRequest, rng: np.random.Generator) -> None:
    target = made.header if rng.random() < 0.5 else _input(made, rng)
    if target and rng.random() < 0.4:
        target.pop(list(target)[int(rng.integers(len(target)))])
    else:
        key = _pick(("parameters", "outputs", "id", "model_name", "timeout", "data", "inputs", "priority"), rng)
        value: Any = _pick(
            (*NUMBERS, [], {}, {"timeout": -5}, {"timeout": 1e9}, [{"name": "x"}], {"a": {"b": []}}), rng
        )
        target[key] = value


def _flip(made: HttpRequest, rng: np.random.Generator) -> None:
    text = bytearray(json.dumps(made.header).encode() if made.text is None else made.text)
    for _ in range(int(rng.integers(1, 4))):
        if text:
            at = int(rng.integers(len(text)))
            choice = rng.random()
            if choice < 0.4:
                text[at] = int(rng.integers(256))
            elif choice < 0.7:
                del text[at]
            else:
                text[at:at] = bytes([int(rng.choice(list(b'{}[]",:0-9e. \\\x00')))])
    made.text = bytes(text)


def _repeat_key(made: HttpRequest, rng: np.random.Generator) -> None:
    text = json.dumps(made.header)
    for key in ('"shape": [', '"name": "', '"inputs": ['):
        if rng.random() < 0.5 and key in text:
            closing = "]" if key.endswith("[") else '"'
            text = text.replace(key, key + closing + ", " + key, 1)
    made.text = text.encode()


def _text(made: HttpRequest, rng: np.random.Generator) -> None:
    made.text = _pick(TEXTS, rng)


def _cut(made: HttpRequest, rng: np.random.Generator) -> None:
    made.cut = int(rng.integers(0, 1 + len(made.body()[0])))


def _lie(made: HttpRequest, rng: np.random.Generator) -> None:
    made.length_off = int(_pick((-1, 1, 8, -8, 100, -100, 10**6, -(10**6)), rng))


def _header(made: HttpRequest, rng: np.random.Generator) -> None:
    name = _pick(("Inference-Header-Content-Length", "Content-Encoding", "x-request-timeout-ms", "traceparent"), rng)
    made.headers[name] = _pick(("", "0", "-1", "5", "gzip", "1e3", "9" * 30, "\xff", "60000"), rng)
    made.headers["x-user-key"] = _pick(("", "u1", "\xfe" * 900), rng)


MUTATIONS: tuple[Callable[[HttpRequest, np.random.Generator], None], ...] = (
    *(_rename, _datatype, _shape, _resize, _value, _count, _drop_or_repeat, _shuffle, _key, _flip, _flip),
    *(_repeat_key, _text, _cut, _lie, _header, _value),
)

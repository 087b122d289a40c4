"""Requests of the Open Inference Protocol as bytes, made before the clock starts, and their answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from engines.backends.contract import Array
from graphs.base.errors import UgsepError

_DATATYPES = {
    "float32": "FP32",
    "float16": "FP16",
    "float64": "FP64",
    "int64": "INT64",
    "int32": "INT32",
    "uint8": "UINT8",
    "int8": "INT8",
    "bool": "BOOL",
}
_DTYPES = {theirs: ours for ours, theirs in _DATATYPES.items()}
LENGTH = "inference-header-content-length"


@dataclass(frozen=True)
class Inputs:
    """The tensors of one request in the order they are sent."""

    tensors: Mapping[str, Array]

    def described(self) -> list[dict[str, Any]]:
        """Return name, datatype, shape and size of every tensor, as the protocol's JSON has them."""
        return [
            {
                "name": name,
                "datatype": _DATATYPES[value.dtype.name],
                "shape": list(value.shape),
                "parameters": {"binary_data_size": value.nbytes},
            }
            for name, value in self.tensors.items()
        ]

    def raw(self) -> list[bytes]:
        """Return every tensor's bytes, little-endian, rows first."""
        return [np.ascontiguousarray(value).tobytes() for value in self.tensors.values()]


def http_request(model: str, inputs: Inputs, user_key: str = "") -> bytes:
    """Return a whole HTTP request with binary tensors; ``user_key`` is what a proxy routes by."""
    header = {"inputs": inputs.described(), "parameters": {"binary_data_output": True}}
    text = json.dumps(header, separators=(",", ":")).encode()
    body = b"".join([text, *inputs.raw()])
    lines = [
        f"POST /v2/models/{model}/infer HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/octet-stream",
        f"Inference-Header-Content-Length: {len(text)}",
        f"Content-Length: {len(body)}",
        *([f"x-user-key: {user_key}"] if user_key else []),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def http_outputs(head: Mapping[str, str], body: bytes) -> tuple[str, dict[str, Array]]:
    """Return the model version and the outputs of an answer's body.

    Raises:
        UgsepError: the answer is not one of the protocol.
    """
    try:
        length = int(head.get(LENGTH, len(body)))
        answer = json.loads(body[:length])
        found, at = {}, length
        for output in answer["outputs"]:
            size = (output.get("parameters") or {}).get("binary_data_size")
            dtype = np.dtype(_DTYPES[output["datatype"]])
            if size is None:
                value = np.asarray(output["data"], dtype)
            else:
                value, at = np.frombuffer(body, dtype, size // dtype.itemsize, at), at + size
            found[output["name"]] = value.reshape(output["shape"])
        return str(answer.get("model_version", "")), found
    except (KeyError, TypeError, ValueError) as error:
        raise UgsepError(
            f"the server's answer of {len(body)} bytes is not one of the protocol ({error!r})"
        ) from error


def grpc_request(model: str, inputs: Inputs) -> bytes:
    """Return a serialized ``ModelInferRequest`` with raw tensors."""
    from engines.serve.oip import open_inference_pb2 as pb

    request = pb.ModelInferRequest(model_name=model)
    for described in inputs.described():
        request.inputs.add(name=described["name"], datatype=described["datatype"], shape=described["shape"])
    request.raw_input_contents.extend(inputs.raw())
    return bytes(request.SerializeToString())


def grpc_outputs(message: bytes) -> tuple[str, dict[str, Array]]:
    """Return the model version and the outputs of a serialized ``ModelInferResponse``."""
    from engines.serve.oip import open_inference_pb2 as pb

    answer = pb.ModelInferResponse.FromString(message)
    found: dict[str, Array] = {}
    for index, output in enumerate(answer.outputs):
        dtype = np.dtype(_DTYPES[output.datatype])
        if answer.raw_output_contents:
            value: Array = np.frombuffer(answer.raw_output_contents[index], dtype)
        else:
            value = np.asarray(output.contents.fp32_contents, dtype)
        found[output.name] = value.reshape(tuple(output.shape))
    return str(answer.model_version), found

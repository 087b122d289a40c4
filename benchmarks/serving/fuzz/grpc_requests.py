"""Mutations of gRPC inference requests, and a plain reading of what a message says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.serving.fuzz.valid import DTYPES, Array, Sent
from engines.serve.oip import open_inference_pb2 as pb

__all__ = ["mutate_grpc", "read_grpc", "read_grpc_answer", "valid_grpc"]

NAMES = ("", "item_id", "user_index", "nothing", "a" * 3000, "ø\u202e", "\x00", "state_model")
SIZES = (0, 1, -1, 2, 63, 65, 2**31, 2**63 - 1, -(2**63))
DATATYPES = ("INT64", "FP32", "FP16", "FP64", "INT32", "BOOL", "BYTES", "BF16", "", "fp32")


def valid_grpc(tensors: Mapping[str, Array], typed: bool, model: str) -> pb.ModelInferRequest:
    """Return a valid request with raw or typed contents."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    made = pb.ModelInferRequest(model_name=model)
    for name, value in tensors.items():
        tensor = made.inputs.add(name=name, datatype=names[value.dtype], shape=value.shape)
        if not typed:
            made.raw_input_contents.append(value.tobytes())
        elif value.dtype.kind == "f":
            tensor.contents.fp32_contents.extend(value.ravel().tolist())
        else:
            tensor.contents.int64_contents.extend(value.ravel().tolist())
    return made


def mutate_grpc(request: pb.ModelInferRequest, rng: np.random.Generator) -> bytes:
    """Return the bytes of a message with one to three mutations."""
    made = pb.ModelInferRequest()
    made.CopyFrom(request)
    for _ in range(int(rng.integers(1, 4))):
        MUTATIONS[int(rng.integers(len(MUTATIONS)))](made, rng)
    message = bytearray(made.SerializeToString())
    if rng.random() < 0.3:
        for _ in range(int(rng.integers(1, 6))):
            message[int(rng.integers(len(message)))] = int(rng.integers(256))
    if rng.random() < 0.1:
        del message[int(rng.integers(len(message))) :]
    return bytes(message)


def read_grpc(message: bytes) -> Sent:
    """Read a message as the protocol says, without any check.

    Raises:
        Exception: it makes no sense.
    """
    request = pb.ModelInferRequest.FromString(message)
    tensors: dict[str, Array] = {}
    for at, given in enumerate(request.inputs):
        dtype = DTYPES[given.datatype]
        if request.raw_input_contents:
            value = np.frombuffer(request.raw_input_contents[at], dtype)
        else:
            (values,) = (values for _, values in given.contents.ListFields())
            value = np.array(values, dtype)
        tensors[given.name] = value.reshape(tuple(given.shape))
    return Sent(tensors, tuple(output.name for output in request.outputs))


def read_grpc_answer(message: bytes) -> dict[str, Array]:
    """Return the outputs of an answer."""
    answer = pb.ModelInferResponse.FromString(message)
    return {
        output.name: np.frombuffer(content, DTYPES[output.datatype]).reshape(tuple(output.shape))
        for output, content in zip(answer.outputs, answer.raw_output_contents, strict=True)
    }


def _pick(values: tuple[Any, ...], rng: np.random.Generator) -> Any:
    return values[int(rng.integers(len(values)))]


def _input(made: pb.ModelInferRequest, rng: np.random.Generator) -> Any:
    return made.inputs[int(rng.integers(len(made.inputs)))] if made.inputs else made.inputs.add()


def _rename(made: pb.ModelInferRequest, rng: np.random.Generator) -> None:
    _input(made, rng).name = _pick(NAMES, rng)


def _datatype(made: pb.ModelInferRequest, rng: np.random.Generator) -> None:
    _input(made, rng).datatype = _pick(DATATYPES, rng)


def _shape(made: pb.ModelInferRequest, rng: np.random.Generator) -> None:
    shape = _input(made, rng).shape
    if shape and rng.random() < 0.7:
        shape[int(rng.integers(len(shape)))] = _pick(SIZES, rng)
    else:
        shape.append(_pick(SIZES, rng))


def _content(made: pb.ModelInferRequest, rng: np.random.Generator) -> None:
    raw = made.raw_input_contents
    if not raw:
        contents = _input(made, rng).contents
        field = _pick(("int64_contents", "fp32_contents", "bool_contents", "int_contents"), rng)
        getattr(contents, field).append(_pick((0, 1), rng))
        return
    at = int(rng.integers(len(raw)))
    changed = bytearray(raw[at])
    choice = rng.random()
    if choice < 0.3:
        changed += b"\0"
    elif choice < 0.5:
        del changed[-1:]
    elif changed:
        changed[int(rng.integers(len(changed)))] = int(rng.choice([0, 1, 127, 128, 255]))
    raw[at] = bytes(changed)


def _typed_value(made: pb.ModelInferRequest, rng: np.random.Generator) -> None:
    contents = _input(made, rng).contents
    if contents.fp32_contents:
        at = int(rng.integers(len(contents.fp32_contents)))
        contents.fp32_contents[at] = _pick((float("nan"), float("inf"), 0.0, 1e38), rng)
    elif contents.int64_contents:
        at = int(rng.integers(len(contents.int64_contents)))
        contents.int64_contents[at] = _pick((-1, 0, 1, 2**63 - 1, -(2**63)), rng)


def _drop_or_repeat(made: pb.ModelInferRequest, rng: np.random.Generator) -> None:
    if not made.inputs:
        return
    at = int(rng.integers(len(made.inputs)))
    if rng.random() < 0.5:
        del made.inputs[at]
        if rng.random() < 0.7 and at < len(made.raw_input_contents):
            del made.raw_input_contents[at]
    else:
        made.inputs.add().CopyFrom(made.inputs[at])
        if made.raw_input_contents and rng.random() < 0.7:
            made.raw_input_contents.append(made.raw_input_contents[min(at, len(made.raw_input_contents) - 1)])


def _swap(made: pb.ModelInferRequest, rng: np.random.Generator) -> None:
    raw = made.raw_input_contents
    if len(raw) > 1:
        one, other = (int(at) for at in rng.integers(0, len(raw), 2))
        raw[one], raw[other] = raw[other], raw[one]


def _envelope(made: pb.ModelInferRequest, rng: np.random.Generator) -> None:
    choice = int(rng.integers(5))
    if choice == 0:
        made.model_name = _pick((*NAMES, "tiny"), rng)
    elif choice == 1:
        made.model_version = _pick(("", "1", "\x00", "v" * 2000), rng)
    elif choice == 2:
        made.id = _pick(("", "a b", "\x07", "i" * 300), rng)
    elif choice == 3:
        made.outputs.add(name=_pick((*NAMES, "like"), rng))
    else:
        value = made.parameters[_pick(("timeout", "priority", "warm_only", "binary_data_output"), rng)]
        setattr(
            value,
            *_pick((("int64_param", -1), ("int64_param", 10**9), ("bool_param", True), ("string_param", "x")), rng),
        )


MUTATIONS: tuple[Callable[[pb.ModelInferRequest, np.random.Generator], None], ...] = (
    *(_rename, _datatype, _shape, _content, _content, _typed_value, _drop_or_repeat, _swap, _envelope),
)

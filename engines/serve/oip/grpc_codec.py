"""Messages of gRPC inference requests and answers, with raw or typed tensor contents."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from engines.backends.contract import Array
from engines.serve.core.job import Answer
from engines.serve.oip import open_inference_pb2 as pb
from engines.serve.oip.request import Decoded, Reply, Tensors, check_id, check_reply, raw_tensor, seconds_of
from engines.serve.oip.signature import Input, Signature, datatype_of
from graphs.base.errors import UgsepError, nearest

__all__ = ["decode_message", "encode_message"]

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


def decode_message(message: bytes, signature: Signature) -> Decoded:
    """Decode a request.

    Raises:
        UgsepError: no ModelInferRequest, an unknown model or version, contents that contradict each other, or an
            unknown, repeated, missing or wrong tensor.
    """
    try:
        request = pb.ModelInferRequest.FromString(message)
    except (DecodeError, UnicodeDecodeError) as error:
        raise UgsepError("the message is no ModelInferRequest; make it with open_inference.proto") from error
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

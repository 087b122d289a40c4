"""Bias correction: what quantizing a weight shifts its output by on average goes into the bias added right after.

E[x (W - restored)] = E[x] (W - restored) is exact for the calibrated mean of the inputs. What is left of the error
has mean zero: its size depends on the inputs' covariance instead of their second moments.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import TensorProto

from quant.arrays import Array, Doubles
from quant.calibration.statistics import InputStatistics


def biases_of(model: onnx.ModelProto) -> dict[str, str]:
    """Return, for each weight whose only product has its own constant added, the name of that constant.

    A weight [K, N] takes a bias of N numbers, one of [T, K, N] a bias [T, 1, N]. The bias must be read nowhere else.
    """
    initializers = {t.name: t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT}
    outputs = {o.name for o in model.graph.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type != "MatMul" or node.input[1] not in initializers or len(readers[node.input[1]]) != 1:
            continue
        after = readers.get(node.output[0], [])
        if node.output[0] in outputs or len(after) != 1 or after[0].op_type != "Add":
            continue
        weight = tuple(initializers[node.input[1]].dims)
        for name in after[0].input:
            alone = name in initializers and len(readers[name]) == 1 and name not in outputs
            if alone and _fits(weight, tuple(initializers[name].dims)):
                found[node.input[1]] = name
    return found


def _fits(weight: tuple[int, ...], bias: tuple[int, ...]) -> bool:
    if len(weight) == 3:
        return bias == (weight[0], 1, weight[2])
    return len(weight) == 2 and bool(bias) and bias[-1] == weight[1] == math.prod(bias)


def mean_shift(weight: Array, restored: Array, seen: InputStatistics) -> Doubles:
    """Return E[x] (W - restored), float64 [N] or [T, N]: what has to be added to the output."""
    shift = np.empty((*weight.shape[:-2], weight.shape[-1]))
    for token in np.ndindex(weight.shape[:-2]):  # one token at a time bounds the temporary
        shift[token] = seen.mean[token] @ (weight[token].astype(np.float64) - restored[token])
    return shift


def corrected(bias: Array, shift: Doubles) -> Array:
    """Return the bias [N] or [T, 1, N] with the shift added, float32 of the same shape."""
    result: Array = (bias + shift.reshape(bias.shape)).astype(np.float32)
    return result

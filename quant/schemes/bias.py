"""Bias correction: the mean shift that quantizing a weight causes in its output is added to the bias that follows.

E[x (W - restored)] = E[x] (W - restored) is exact for the calibrated mean of the inputs. The remaining error has mean
zero and depends on the inputs' covariance instead of their second moments.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from quant.arrays import Array, Doubles
from quant.calibration.statistics import InputStatistics
from quant.graph.gemms import ONNX_DOMAINS, name_of, tensor_of


def biases_of(model: ir.Model) -> dict[str, str]:
    """Return the name of the bias of each weight: a constant added to the weight's only product.

    A weight [K, N] takes a bias of N numbers, one of [T, K, N] a bias [T, 1, N]. No other node may read it.
    """
    found: dict[str, str] = {}
    for node in model.graph:
        weight = node.inputs[1] if node.op_type == "MatMul" and node.domain in ONNX_DOMAINS else None
        if weight is None or not _is_own_float(weight):
            continue
        product = node.outputs[0]
        after = [user for user, _ in product.uses()]
        if product.is_graph_output() or len(after) != 1 or after[0].op_type != "Add":
            continue
        for value in after[0].inputs:
            if value is None or value.is_graph_output() or not _is_own_float(value):
                continue
            if _fits(tuple(tensor_of(weight).shape.numpy()), tuple(tensor_of(value).shape.numpy())):
                found[name_of(weight)] = name_of(value)
    return found


def _is_own_float(value: ir.Value) -> bool:
    """Whether a value is a float32 constant with one reader."""
    return value.is_initializer() and tensor_of(value).dtype == ir.DataType.FLOAT and len(value.uses()) == 1


def _fits(weight: tuple[int, ...], bias: tuple[int, ...]) -> bool:
    if len(weight) == 3:
        return bias == (weight[0], 1, weight[2])
    return len(weight) == 2 and bool(bias) and bias[-1] == weight[1] == math.prod(bias)


def mean_shift(weight: Array, restored: Array, seen: InputStatistics) -> Doubles:
    """Return E[x] (W - restored), float64 [N] or [T, N], to be added to the output."""
    shift = np.empty((*weight.shape[:-2], weight.shape[-1]))
    for token in np.ndindex(weight.shape[:-2]):  # one token at a time bounds the temporary
        shift[token] = seen.mean[token] @ (weight[token].astype(np.float64) - restored[token])
    return shift


def corrected(bias: Array, shift: Doubles) -> Array:
    """Return the bias [N] or [T, 1, N] with the shift added, float32 of the same shape."""
    result: Array = (bias + shift.reshape(bias.shape)).astype(np.float32)
    return result

"""Initializers whose values are still on disk: onnx_ir tensors that record their source."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch

from export.weights.lazy_weights import Constant, Weights

_KEY = "ugsep.constant"
_WEIGHTS = "ugsep.weights"
_TYPES = {
    torch.float32: ir.DataType.FLOAT, torch.float64: ir.DataType.DOUBLE, torch.float16: ir.DataType.FLOAT16,
    torch.int64: ir.DataType.INT64, torch.int32: ir.DataType.INT32, torch.bool: ir.DataType.BOOL,
}  # fmt: skip


def lazy_tensor(constant: Constant, name: str, weights: Weights) -> ir.LazyTensor:
    """Return a tensor of the constant's shape and dtype that is read only when its values are asked for."""

    def read() -> ir.Tensor[Any]:
        value = weights.read(constant, name=name).to(constant.dtype).contiguous()
        return ir.Tensor(value.numpy(), name=name)

    lazy = ir.LazyTensor(read, dtype=_TYPES[constant.dtype], shape=ir.Shape(constant.shape), name=name)
    lazy.meta[_KEY], lazy.meta[_WEIGHTS] = constant, weights
    return lazy


def constant_of(tensor: ir.TensorProtocol) -> Constant | None:
    """Return where a lazy tensor's values come from, None for any other tensor."""
    found = tensor.meta.get(_KEY)
    return found if isinstance(found, Constant) else None


def transposed(tensor: ir.TensorProtocol, name: str) -> ir.LazyTensor | None:
    """Return a lazy tensor with its axes swapped, still unread; None for any other tensor."""
    constant = constant_of(tensor)
    return lazy_tensor(constant.transposed(), name, tensor.meta[_WEIGHTS]) if constant is not None else None

"""The slots of a streamed graph's weights in its data files, and the chunks each weight is processed in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import Tensor

from export.weights.lazy_weights import Constant, Slice, Weights
from graphs.base.errors import UgsepError
from quant.graph.files import aligned
from quant.graph.gemms import Weight, name_of, read_tensor, tensor_of
from quant.schemes.numerics import blocks_of

#: float32 bytes of a chunk; a worker holds a few times as much.
CHUNK_BYTES = 32 << 20


@dataclass(frozen=True)
class Source:
    """How to read regions of one weight into a given buffer; ``refuse`` raises for NaN and Inf."""

    read: Callable[[Slice, Tensor], Tensor]
    refuse: Callable[[Tensor], None]


@dataclass(frozen=True)
class Slot:
    """One weight to encode: its bits (8 or 16), its bytes in the shared file, its scales in the scratch file."""

    weight: Weight
    bits: int
    block: int
    offset: int
    length: int
    scale_offset: int
    scale_shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """Name of the weight."""
        return self.weight.name

    @property
    def scale_bytes(self) -> int:
        """Bytes of the float32 scales."""
        return 4 * torch.Size(self.scale_shape).numel() if self.scale_shape else 0

    def chunks(self) -> Iterator[Slice]:
        """Cut the weight into chunks of at most CHUNK_BYTES: whole columns of a token, or rows of a table."""
        *lead, inputs, outputs = self.weight.shape
        if self.weight.kind == "table":
            step = max(1, CHUNK_BYTES // (4 * outputs))
            for low in range(0, inputs, step):
                yield (low, min(low + step, inputs)), (0, outputs)
            return
        step = max(1, min(outputs, CHUNK_BYTES // (4 * inputs)))
        for token in range(lead[0] if lead else 1):
            for low in range(0, outputs, step):
                matrix = (0, inputs), (low, min(low + step, outputs))
                yield ((token, token + 1), *matrix) if lead else matrix

    def scale_slice(self, bounds: Slice) -> Slice:
        """Return the region of the scales [B, N], [T, B, N] or [V] that belongs to a chunk."""
        if self.weight.kind == "table":
            return (bounds[0],)
        return (*bounds[:-2], (0, self.scale_shape[-2]), bounds[-1])


def lay_out(weights: Mapping[Weight, int], block: int) -> tuple[tuple[Slot, ...], int, int]:
    """Slot weights (with their bits) one after the other, as ``quantize_side`` does; returns both files' sizes.

    Raises:
        UgsepError: K of a weight is not a multiple of ``block``.
    """
    slots: list[Slot] = []
    end = scale_end = 0
    for weight, bits in weights.items():
        length = weight.elements * bits // 8
        shape: tuple[int, ...] = ()
        if bits == 8 and weight.kind == "table":
            shape = weight.shape[:1]
        elif bits == 8:
            inputs = weight.shape[-2]
            if block and inputs % block:
                raise UgsepError(
                    f"weight '{weight.name}' has K = {inputs}, not a multiple of block {block}; "
                    "choose a block that divides it, or keep the weight float by a rule"
                )
            shape = (*weight.shape[:-2], blocks_of(inputs, block), weight.shape[-1])
        offset = aligned(end, length)
        slots.append(Slot(weight, bits, block, offset, length, scale_end, shape))
        end, scale_end = offset + length, scale_end + slots[-1].scale_bytes
    return tuple(slots), end, scale_end


def source_of(value: ir.Value, constants: Mapping[str, Constant], weights: Weights) -> Source:
    """Return how to read a weight of a streamed graph: from the checkpoint, or from the graph if it is small."""
    name = name_of(value)
    constant = constants.get(name)
    if constant is None:
        held = torch.from_numpy(read_tensor(tensor_of(value)).copy())
        return Source(
            lambda bounds, buffer: held[tuple(slice(a, b) for a, b in bounds)],
            lambda value: None,  # checked when it was read into the graph
        )
    return Source(
        lambda bounds, buffer: weights.read_unchecked(constant, bounds, name, buffer),
        lambda value: weights.check(constant, value, name),
    )

"""AWQ (arXiv 2306.00978): scale up the input channels that matter and fold the inverse into the previous operator.

A factor s_k per input channel k turns x W into (x / s)(s W): the graph computes the same, but channels with large
activations lose less to rounding. Factors are powers of two, so the folded FP32 graph is exact, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from quant.arrays import Array, Doubles, Floats
from quant.calibration.statistics import InputStatistics
from quant.graph.gemms import Weight, name_of, tensor_of
from quant.schemes import numerics

# f(x / s) = f(x) / s for s > 0, element by element, so a factor passes through them
_HOMOGENEOUS = ("Relu", "LeakyRelu", "Identity", "Dropout")


@dataclass(frozen=True)
class Scaling:
    """Factors to apply to an initializer when it is read: rows times ``rows``, last axis divided by ``columns``.

    ``rows`` is [K] or [T, K]; ``columns`` is [N] or [T, N]; None for no factor.
    """

    rows: Floats | None = None
    columns: Floats | None = None

    def apply(self, values: Array) -> Array:
        """Return the scaled values; float32 powers of two, so nothing is rounded."""
        if self.rows is not None:
            values = values * self.rows[..., :, None]
        if self.columns is not None:
            spread = self.columns[:, None, :] if self.columns.ndim == 2 and values.ndim == 3 else self.columns
            values = values / spread
        return values

    def undo(self, values: Array) -> Array:
        """Return scaled values as they were before :meth:`apply`."""
        one = np.float32(1)
        rows = None if self.rows is None else one / self.rows
        return Scaling(rows, None if self.columns is None else one / self.columns).apply(values)


@dataclass(frozen=True)
class Fold:
    """The initializers that take the factors of one MatMul input: their last axis is divided by them.

    ``per_token``: every feature token may have its own factors. ``reason`` is set if nothing can take them.
    """

    targets: tuple[str, ...] = ()
    per_token: bool = False
    reason: str = ""


@dataclass(frozen=True)
class AwqPlan:
    """Scalings by initializer, and the reason for each weight that could not be scaled."""

    scalings: Mapping[str, Scaling]
    reasons: Mapping[str, str]


def plan_awq(
    model: ir.Model,
    weights: tuple[Weight, ...],
    statistics: Callable[[str], InputStatistics],
    read: Callable[[str], Array],
    alphas: tuple[float, ...],
    block: int,
) -> AwqPlan:
    """Choose the factors of every MatMul input of ``weights`` (those that become int8) and what they are folded into.

    ``statistics`` and ``read`` return a weight's calibration and values. alpha = 0 (no scaling) is always tried.
    """
    scalings: dict[str, Scaling] = {}
    reasons: dict[str, str] = {}
    quantized = {w.name for w in weights}
    by_input: dict[tuple[str, ...], list[Weight]] = {}
    for weight in weights:
        by_input.setdefault(weight.inputs, []).append(weight)
    taken: set[str] = set()
    for inputs, group in by_input.items():
        fold = _fold_of(model, inputs, group, quantized)
        if not fold.reason and taken & set(fold.targets):
            fold = Fold(reason=f"'{fold.targets[0]}' already takes the factors of another weight")
        if fold.reason:
            reasons.update({w.name: fold.reason for w in group})
            continue
        factors = _best_factors(group, statistics, read, alphas, block, fold.per_token)
        if (factors == 1).all():
            continue
        taken |= set(fold.targets)
        for weight in group:
            previous = scalings.get(weight.name, Scaling())
            scalings[weight.name] = Scaling(factors, previous.columns)
        for target in fold.targets:
            scalings[target] = Scaling(scalings.get(target, Scaling()).rows, factors)
    return AwqPlan(scalings, reasons)


def factors_of(moments: Doubles, alpha: float) -> Floats:
    """Return s_k = E[x_k^2]^(alpha / 2), normalised and rounded to a power of two, float32 of the same shape."""
    size = np.sqrt(np.maximum(moments, 0.0))
    seen = size > 0
    logs = np.log2(np.where(seen, size, 1.0))
    mean = (logs * seen).sum(axis=-1, keepdims=True) / np.maximum(seen.sum(axis=-1, keepdims=True), 1)
    exponents = np.where(seen, np.rint(alpha * (logs - mean)), 0.0)
    result: Floats = np.exp2(np.clip(exponents, -12, 12)).astype(np.float32)
    return result


def _best_factors(
    group: list[Weight],
    statistics: Callable[[str], InputStatistics],
    read: Callable[[str], Array],
    alphas: tuple[float, ...],
    block: int,
    per_token: bool,
) -> Floats:
    """Return the factors [K] or [T, K] with the least calibrated output error over all weights of one input."""
    moments = statistics(group[0].name).moments  # one tensor feeds the group
    shared = moments if per_token or moments.ndim == 1 else moments.mean(axis=0)
    values = [read(w.name) for w in group]
    best, least = np.ones(shared.shape, np.float32), np.inf
    for alpha in (0.0, *(a for a in alphas if a != 0.0)):
        factors = factors_of(shared, alpha)
        scaled_moments = moments / factors.astype(np.float64) ** 2
        error = 0.0
        for weight in values:
            scaled = weight * factors[..., :, None]
            scale = numerics.absmax_scale(scaled, block)
            restored = numerics.dequantize(numerics.quantize(scaled, scale), scale)
            error += float(numerics.output_error(scaled, restored, scaled_moments).sum())
        if error < least:
            best, least = factors, error
    return best


def _fold_of(model: ir.Model, inputs: tuple[str, ...], group: list[Weight], quantized: set[str]) -> Fold:
    if len(inputs) != 1:
        return Fold(reason="several tensors are multiplied with it")
    source = ir.convenience.create_value_mapping(model.graph)[inputs[0]]
    names = {w.name for w in group}
    if any(n.op_type != "MatMul" or name_of(n.inputs[1]) not in names for n, _ in source.uses()):
        return Fold(reason="its input is also read elsewhere")
    width, ranks = group[0].shape[-2], {len(w.shape) for w in group}
    if len(ranks) != 1:
        return Fold(reason="its input feeds 2-D and 3-D weights")
    tokens = group[0].shape[0] if ranks == {3} else 0

    def divisible(value: ir.Value) -> bool:
        """Whether a value is a constant that can be divided along its last axis, and no other node reads it."""
        return value.is_initializer() and _dims(value)[-1:] == (width,) and len(value.uses()) == 1

    def walk(value: ir.Value, first: bool, straight: bool) -> Fold:
        """Follow the factor up from a tensor; ``straight`` while the token axis has not moved."""
        if value.is_graph_output() or (not first and len(value.uses()) != 1):
            return Fold(reason=f"'{value.name}' is also read elsewhere")
        node = value.producer()
        if node is None:
            return Fold(reason=f"'{value.name}' is a graph input")
        read = [v for v in node.inputs if v is not None]
        constants, computed = ([v for v in read if v.is_initializer() == known] for known in (True, False))
        kind = node.op_type
        if kind in _HOMOGENEOUS:
            return walk(read[0], False, straight)
        if kind == "Transpose":
            perm = node.attributes.get_ints("perm") or ()
            if perm and perm[-1] == len(perm) - 1:
                return walk(read[0], False, False)
        if kind in ("Add", "Sub") and len(constants) == 1 and divisible(constants[0]):
            above = walk(computed[0], False, straight)
            if above.reason:
                return above
            tokenwise = above.per_token and _per_token(_dims(constants[0]), tokens)
            return Fold((*above.targets, name_of(constants[0])), tokenwise)
        if kind == "Mul":
            for constant in filter(divisible, constants):
                return Fold((name_of(constant),), straight and _per_token(_dims(constant), tokens))
            tried = [walk(v, False, straight) for v in reversed(computed)]
            if tried:
                return next((f for f in tried if not f.reason), tried[0])
        if kind == "Div":
            return walk(read[0], False, straight)
        if kind in ("LayerNormalization", "RMSNormalization") and all(map(divisible, read[1:3])):
            return Fold(tuple(name_of(v) for v in read[1:3]), False)
        if kind == "MatMul" and name_of(read[1]) in quantized and divisible(read[1]):
            return Fold((name_of(read[1]),), straight and len(_dims(read[1])) == 3)
        return Fold(reason=f"{kind} before it takes no factor")

    return walk(source, True, True)


def _dims(constant: ir.Value) -> tuple[int, ...]:
    return tuple(tensor_of(constant).shape.numpy())


def _per_token(dims: tuple[int, ...], tokens: int) -> bool:
    """Whether a constant is [T, 1, K], with one row per feature token."""
    return bool(tokens) and len(dims) == 3 and dims[0] == tokens and dims[1] == 1


def scaled_statistics(statistics: InputStatistics, scaling: Scaling | None) -> InputStatistics:
    """Return the statistics of x / s for statistics of x."""
    if scaling is None or scaling.rows is None:
        return statistics
    rows: Any = scaling.rows.astype(np.float64)
    gram = statistics.gram
    if gram is not None:
        gram = gram / (rows[..., :, None] * rows[..., None, :])
    return InputStatistics(
        statistics.count,
        statistics.squares / rows**2,
        statistics.sums / rows,
        statistics.low / rows,
        statistics.high / rows,
        gram,
    )

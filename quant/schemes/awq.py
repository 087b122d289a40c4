"""AWQ (arXiv 2306.00978): scale up the input channels that matter, and fold the inverse into the operator before.

A factor s_k per input channel k turns x W into (x / s)(s W): the graph computes the same, but the channels with large
activations lose less to rounding. The factors are powers of two, so the folded FP32 graph is exact, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from quant.arrays import Array, Doubles, Floats
from quant.calibration.statistics import InputStatistics
from quant.graph.gemms import Weight
from quant.schemes import numerics

# f(x / s) = f(x) / s for s > 0, element by element, so a factor passes through them
_HOMOGENEOUS = ("Relu", "LeakyRelu", "Identity", "Dropout")


@dataclass(frozen=True)
class Scaling:
    """Factors to apply to an initializer when it is read: its rows times ``rows``, its last axis over ``columns``.

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
        """Return what :meth:`apply` scaled in its first units again."""
        one = np.float32(1)
        rows = None if self.rows is None else one / self.rows
        return Scaling(rows, None if self.columns is None else one / self.columns).apply(values)


@dataclass(frozen=True)
class Fold:
    """Where the factors of one MatMul input go: the initializers whose last axis is divided by them.

    ``per_token`` says whether every token may have its own factors. ``reason`` is set where nothing can take them.
    """

    targets: tuple[str, ...] = ()
    per_token: bool = False
    reason: str = ""


@dataclass(frozen=True)
class AwqPlan:
    """Scalings by initializer, and for each weight that could not be scaled the reason."""

    scalings: Mapping[str, Scaling]
    reasons: Mapping[str, str]


def plan_awq(
    model: onnx.ModelProto,
    weights: tuple[Weight, ...],
    statistics: Callable[[str], InputStatistics],
    read: Callable[[str], Array],
    alphas: tuple[float, ...],
    block: int,
) -> AwqPlan:
    """Choose the factors of every MatMul input of ``weights`` (those that become int8) and where they are folded.

    ``statistics`` and ``read`` return a weight's calibration and its values. alpha = 0 (no scaling) is always tried.
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


def _fold_of(model: onnx.ModelProto, inputs: tuple[str, ...], group: list[Weight], quantized: set[str]) -> Fold:
    graph = model.graph
    if len(inputs) != 1:
        return Fold(reason="several tensors are multiplied with it")
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    names = {w.name for w in group}
    if any(n.op_type != "MatMul" or n.input[1] not in names for n in readers[inputs[0]]):
        return Fold(reason="its input is also read elsewhere")
    producers = {o: n for n in graph.node for o in n.output}
    outputs = {o.name for o in graph.output}
    constants = {t.name: tuple(t.dims) for t in graph.initializer}
    width, ranks = group[0].shape[-2], {len(w.shape) for w in group}
    if len(ranks) != 1:
        return Fold(reason="its input feeds 2-D and 3-D weights")
    tokens = group[0].shape[0] if ranks == {3} else 0

    def constant(name: str) -> bool:
        """Whether an initializer can be divided: along the last axis, and by nobody else's leave."""
        dims = constants.get(name)
        return dims is not None and bool(dims) and dims[-1] == width and len(readers[name]) == 1

    def walk(name: str, first: bool, straight: bool) -> Fold:
        """Follow the factor up from a tensor; ``straight`` while the token axis is still where it was."""
        node = producers.get(name)
        if name in outputs or (not first and len(readers[name]) != 1):
            return Fold(reason=f"'{name}' is also read elsewhere")
        if node is None:
            return Fold(reason=f"'{name}' is a graph input")
        kind = node.op_type
        if kind in _HOMOGENEOUS:
            return walk(node.input[0], False, straight)
        if kind == "Transpose":
            perm = next((list(a.ints) for a in node.attribute if a.name == "perm"), [])
            if perm and perm[-1] == len(perm) - 1:
                return walk(node.input[0], False, False)
        if kind in ("Add", "Sub"):
            known = [i for i in node.input if i in constants]
            rest = [i for i in node.input if i not in constants]
            if len(known) == 1 and constant(known[0]):
                above = walk(rest[0], False, straight)
                if above.reason:
                    return above
                tokenwise = above.per_token and _per_token(constants[known[0]], tokens)
                return Fold((*above.targets, known[0]), tokenwise)
        if kind == "Mul":
            for known in (i for i in node.input if i in constants):
                if constant(known):
                    return Fold((known,), straight and _per_token(constants[known], tokens))
            tried = [walk(i, False, straight) for i in reversed(node.input) if i not in constants]
            if tried:
                return next((f for f in tried if not f.reason), tried[0])
        if kind == "Div":
            return walk(node.input[0], False, straight)
        if kind in ("LayerNormalization", "RMSNormalization"):
            affine = tuple(node.input[1:3])
            if all(constant(i) for i in affine):
                return Fold(affine, False)
        if kind == "MatMul" and node.input[1] in quantized and constant(node.input[1]):
            return Fold((node.input[1],), straight and len(constants[node.input[1]]) == 3)
        return Fold(reason=f"{kind} before it takes no factor")

    return walk(inputs[0], True, True)


def _per_token(dims: tuple[int, ...], tokens: int) -> bool:
    """Whether a constant of [T, 1, K] holds a value of its own for each token."""
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

"""Inputs far from the example: ids over the whole range of their type, and floats of many magnitudes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from engines.backends.contract import Array
from engines.verify.exported.reference import Surviving, reference
from graphs.split.split import Subgraph

aten = torch.ops.aten

#: Powers of two beyond which a float32, an int32 and a float64 no longer hold every integer, and the largest int64.
_BITS = (63, 53, 31, 24)
_MAGNITUDES = (1e-6, 1e-3, 1.0, 30.0, 1e3)
_LOOKUPS = {aten.embedding.default, aten.embedding_bag.padding_idx, aten.index.Tensor, aten.index_select.default}
_SAME_IDS = {
    aten.view.default, aten.reshape.default, aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims,
    aten._to_copy.default, aten.expand.default, aten.flatten.using_ints, aten.clone.default, aten.slice.Tensor,
}  # fmt: skip


def extreme_columns(
    subgraph: Subgraph, rows: Mapping[str, Tensor], skip: Sequence[str] = ()
) -> Iterator[tuple[str, Tensor, str]]:
    """Yield (input, values [N, ...], what they are) for every input whose values no table bounds.

    Integers cover the widest range that the PyTorch graph accepts: its edges, and random values. An input that is
    looked up in a table as it is keeps to the ids it has.

    Args:
        subgraph: the PyTorch graph.
        rows: ordinary values of all inputs, [N, ...].
        skip: inputs to leave as they are.
    """
    generator = torch.Generator().manual_seed(0)
    placeholders = [n for n in subgraph.module.graph.nodes if n.op == "placeholder"]
    for name, node in zip(subgraph.inputs, placeholders, strict=True):
        value = rows[name]
        if name in skip or value.dtype is torch.bool or not value.numel():
            continue
        if value.is_floating_point():
            signs = torch.randint(0, 2, value.shape, generator=generator) * 2 - 1
            sizes = torch.tensor(_MAGNITUDES, dtype=value.dtype)[torch.arange(len(value)) % len(_MAGNITUDES)]
            scaled = value.nan_to_num(0.0, 0.0, 0.0) * sizes.view(-1, *[1] * (value.dim() - 1)) * signs
            if _is_finite(subgraph, {**rows, name: scaled}):
                yield name, scaled, "of magnitudes 1e-6 to 1e3"
        elif not _is_looked_up(node):
            for low, high in _ranges(value.dtype):
                wide = _integers(value, low, high, generator)
                if _is_finite(subgraph, {**rows, name: wide}):
                    yield name, wide, f"between {low} and {high}"
                    break


def _ranges(dtype: torch.dtype) -> list[tuple[int, int]]:
    """Return ranges of integers to try, the widest first."""
    limits = torch.iinfo(dtype)
    found = [(limits.min, limits.max), (0, limits.max), (1, limits.max)]  # without 0: divisors
    for bits in _BITS[1:]:
        if 2**bits < limits.max:
            found += [(-(2**bits) - 1, 2**bits + 1), (0, 2**bits + 1), (1, 2**bits + 1)]
    return found


def _integers(like: Tensor, low: int, high: int, generator: torch.Generator) -> Tensor:
    """Return values in [low, high] shaped like a tensor: edges first, then random ones of every magnitude."""
    powers = {sign * 2**bits + step for bits in _BITS for sign in (1, -1) for step in (-1, 0, 1)}
    edges = {low, low + 1, high - 1, high, 0, 1, -1, *powers}
    known = torch.tensor(sorted(e for e in edges if low <= e <= high), dtype=torch.int64)
    draws = np.random.default_rng(int(torch.randint(0, 2**31, (1,), generator=generator)))
    values = torch.from_numpy(draws.integers(low, high, like.numel(), dtype=np.int64, endpoint=True))
    values >>= torch.from_numpy(draws.integers(0, 40, like.numel())) * (torch.arange(like.numel()) % 2)
    values = values.clamp(low, high)
    # Every edge in the first column of some row, and in random places of the others.
    values = values.reshape(len(like), -1)
    values[: len(known), 0] = known[: len(values)]
    return values.reshape(like.shape).to(like.dtype)


def _is_looked_up(node: fx.Node) -> bool:
    """Return whether an input, or a view of it, is an index of a lookup."""
    for user in node.users:
        if user.target in _LOOKUPS and node is not user.args[0]:
            return True
        if user.target in _SAME_IDS and user.meta["val"].dtype == torch.int64 and _is_looked_up(user):
            return True
    return False


def _is_finite(subgraph: Subgraph, given: Mapping[str, Tensor]) -> bool:
    """Return whether PyTorch accepts these inputs and computes something finite of them."""
    try:
        found = reference(subgraph, given)
    except (IndexError, RuntimeError):  # an id beyond a table, a division by 0
        return False
    return any(bool(v.isfinite().any()) for v in found.values())


def exact_outputs(subgraph: Subgraph, given: Mapping[str, Tensor]) -> dict[str, Array]:
    """Return the outputs of a graph computed in float64, or none if an op has no such form."""
    with torch.no_grad():
        try:
            found = _Double(subgraph.module).run(*[given[name] for name in subgraph.inputs])
        except (RuntimeError, TypeError, NotImplementedError):
            return {}
    return {name: value.double().numpy() for name, value in zip(subgraph.outputs, found, strict=True)}


class _Double(Surviving):
    """Runs a graph with float64 in the place of float32."""

    def run_node(self, n: fx.Node) -> Any:
        """Run a node on float64."""
        return pytree.tree_map_only(Tensor, _widened, super().run_node(n))

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Call an op, asked for float64 where it was asked for float32."""
        args, kwargs = pytree.tree_map_only(torch.dtype, _wider, (args, kwargs))
        return super().call_function(target, args, kwargs)


def _widened(value: Tensor) -> Tensor:
    return value.double() if value.dtype is torch.float32 else value


def _wider(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype is torch.float32 else dtype

"""Prove a split on fresh random rows: the subgraphs give the whole model's scores, and rows do not mix."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from graphs.base.errors import GateFailed
from graphs.base.names import USER_INDEX
from graphs.split.fresh_rows import fresh_rows
from graphs.split.split import Split, Subgraph
from graphs.trace.trace import Traced

CANDIDATES = (1, 2, 257)
USERS = (1, 3)

RowSource = Callable[[Mapping[str, Tensor], int, torch.Generator], dict[str, Tensor]]


@dataclass(frozen=True)
class SplitProof:
    """Result of comparing every output on ``rows`` rows over all request shapes.

    ``max_abs`` is the largest |split - whole|, ``max_rel`` the same relative to max |output| of its output,
    ``row_max_abs`` the largest change of a row's outputs when another row is replaced, relative to max |output|.
    """

    max_abs: float
    max_rel: float
    row_max_abs: float
    rows: int
    shapes: tuple[tuple[int, int], ...]


def prove_split(
    split: Split,
    *,
    tolerance: float = 1e-5,
    candidates: tuple[int, ...] = CANDIDATES,
    users: tuple[int, ...] = USERS,
    seed: int = 0,
    rows_like: RowSource = fresh_rows,
) -> SplitProof:
    """Compare user graph + item graph with the whole model on fresh rows of every request shape.

    ``tolerance`` bounds |split - whole| relative to max(1, max |output|). ``rows_like`` draws the rows, for models
    whose inputs are known beyond an example.

    Raises:
        GateFailed: a difference above the tolerance, a NaN, or a row that changes with another row.
    """
    generator = torch.Generator().manual_seed(seed)
    example = dict(zip(split.traced.inputs, split.traced.example, strict=True))
    shapes = tuple((n, u) for u in users for n in candidates)
    found: dict[str, list[tuple[float, str]]] = {name: [] for name in split.full.outputs}
    scales = dict.fromkeys(split.full.outputs, 0.0)
    for count, many in shapes:
        drawn = rows_like(example, max(count, many), generator)
        index = torch.arange(count) % many
        scores, whole = _scored(split, drawn, many, index[torch.randperm(count, generator=generator)])
        for name in split.full.outputs:
            difference, scale = _difference(scores[name], whole[name])
            found[name].append((difference, f"{count} candidates of {many} users"))
            scales[name] = max(scales[name], scale)
    for name, differences in found.items():
        bound = tolerance * max(scales[name], 1.0)
        difference, at = max(differences)
        if not difference <= bound:
            if difference == math.inf:
                raise GateFailed(
                    f"split: output '{name}' has a NaN or infinity for {at} where the whole model has a number, or "
                    "the other way round; look for sums over empty sets"
                )
            raise GateFailed(
                f"split: output '{name}' differs by {difference:.3g} from the whole model for {at}, bound {bound:.3g}"
            )
    moved = rows_influence(split.full, split.traced, generator, rows_like)
    if not moved <= tolerance:
        raise GateFailed(
            f"split: a row's scores change by {moved:.3g} of their size if another row changes; rows must not mix"
        )
    worst = {name: max(differences)[0] for name, differences in found.items()}
    relative = max(worst[name] / (scales[name] or 1.0) for name in worst)
    return SplitProof(max(worst.values()), relative, moved, sum(n for n, _ in shapes), shapes)


def _scored(
    split: Split, drawn: Mapping[str, Tensor], users: int, index: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Score a request with the split and with the whole model; ``index`` [candidates] holds their users' rows."""
    of_users = {n: drawn[n][:users] for n in split.user_inputs}
    of_items = {n: drawn[n][: len(index)] for n in split.item_inputs}
    # A model may squeeze away the batch axis of a single row, so score that row twice and drop one result.
    times = 2 if len(index) == 1 else 1
    rows = {**{n: v[index] for n, v in of_users.items()}, **of_items}
    # The whole model first, so that its own errors are not blamed on the split.
    # 16-bit floats round by more than the tolerance; trace compared them with the graph in float32.
    of_model = None if split.traced.widened else split.traced.original
    whole = (of_model or split.full)({n: torch.cat([v] * times) for n, v in rows.items()})
    scores = split.item({**of_items, **split.user(of_users), USER_INDEX: index})
    return scores, {n: v[: len(index)] for n, v in whole.items()}


def rows_influence(
    full: Subgraph, traced: Traced, generator: torch.Generator, rows_like: RowSource = fresh_rows, rows: int = 5
) -> float:
    """Return the largest change of a row's outputs, relative to max |output|, when any one other row is replaced."""
    example = dict(zip(traced.inputs, traced.example, strict=True))
    before = rows_like(example, rows, generator)
    other = rows_like(example, rows, generator)
    reference = full(before)
    worst = 0.0
    for row in range(rows):
        changed = {n: v.clone() for n, v in before.items()}
        for name, value in changed.items():
            value[row] = other[name][row]
        after = full(changed)
        rest = [r for r in range(rows) if r != row]
        for name in full.outputs:
            _, scale = _difference(reference[name], reference[name])
            difference, _ = _difference(after[name][rest], reference[name][rest])
            worst = max(worst, difference / max(scale, 1.0))
    return worst


def _difference(found: Tensor, expected: Tensor) -> tuple[float, float]:
    """Return max |found - expected|, infinite if only one of the two has a NaN, and max |expected|."""
    if found.shape != expected.shape:
        raise GateFailed(
            f"split: an output has shape {tuple(found.shape)}, but {tuple(expected.shape)} in the whole model"
        )
    if not expected.numel():
        return 0.0, 0.0
    a, b = found.double(), expected.double()
    same = (a == b) | (a.isnan() & b.isnan())
    scale = float(torch.where(b.isfinite(), b, torch.zeros_like(b)).abs().max())
    difference = torch.where(same, torch.zeros_like(a), (a - b).abs()).nan_to_num(math.inf)
    return float(difference.max()), scale

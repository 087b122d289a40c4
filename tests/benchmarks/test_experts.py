"""The benchmark of routed experts: both layers are built as served, correct, and have the same active FLOPs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import experts
from benchmarks.experts import Dense, LayerSizes, Routed, measure_routing
from graphs.base.errors import GateFailed

# 36 * 320 * 3 weights per expert: enough for the lowering to route them.
SIZES = LayerSizes(tokens=2, width=36, hidden=320, experts=4, active=2)


def weights(module: nn.Module) -> int:
    return sum(p.numel() for name, p in module.named_parameters() if name.endswith("weight") and "router" not in name)


def test_both_layers_have_the_same_active_flops() -> None:
    routed, dense = Routed(SIZES), Dense(SIZES)
    assert weights(dense) == weights(routed) * SIZES.active // SIZES.experts
    assert SIZES.active_flops(7) == 2 * 7 * weights(dense)


def test_measure_times_what_it_has_checked() -> None:
    found = measure_routing(SIZES, rows=9, rounds=2)
    assert found.routed_ms > 0
    assert found.dense_ms > 0
    assert found.ratio == found.routed_ms / found.dense_ms
    table = experts.markdown([found]).splitlines()
    assert table[-1].startswith("| 2 | 36 | 320 | 4 | 2 | 9 |")
    assert len({line.count("|") for line in table}) == 1


def test_a_wrong_layer_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph is built from the right module; the module it is compared with is changed afterwards."""
    loaded = experts._loaded

    def change_after(layer: nn.Module, x: Tensor, folder: Path, stack: ExitStack) -> Callable[[], dict[str, Any]]:
        run = loaded(layer, x, folder, stack)
        with torch.no_grad():
            next(p for name, p in layer.named_parameters() if "down" in name).mul_(1.1)
        return run

    monkeypatch.setattr(experts, "_loaded", change_after)
    with pytest.raises(GateFailed, match="the routed layer differs from PyTorch"):
        measure_routing(SIZES, rows=9, rounds=2)

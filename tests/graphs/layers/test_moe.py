"""Mixtures of experts against a loop over experts, and their training-only losses."""

from __future__ import annotations

from typing import TypeVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import gelu, silu

from graphs.layers.moe import (
    GELUExperts,
    ReLUSparseFFN,
    SoftmaxRouter,
    SparseSwiGLU,
    SwiGLUExperts,
    gate_hidden,
    top_k_gates,
)
from graphs.layers.tokenwise import TokenwiseSwiGLU
from tests.graphs.model_laws import make_config, make_model, make_rows

T, N, D, H, E = 2, 5, 6, 3, 4
TOLERANCE = {"atol": 2e-6, "rtol": 1e-5}  # FP32 sums of at most 12 products of order 1


M = TypeVar("M", bound=nn.Module)


def randomised(module: M) -> M:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module.eval()


@settings(max_examples=30, deadline=None)
@given(experts=st.integers(1, 6), data=st.data(), seed=st.integers(0, 2**31 - 1))
def test_top_k_keeps_the_largest(experts: int, data: st.DataObject, seed: int) -> None:
    k = data.draw(st.integers(1, experts))
    p = torch.randn(T, N, experts, generator=torch.Generator().manual_seed(seed)).softmax(-1)
    gates = top_k_gates(p, k)
    assert ((gates > 0).sum(-1) == k).all()
    assert torch.equal(gates[gates > 0], p[gates > 0])
    assert torch.equal(gates.sort(-1).values[..., -k:], p.sort(-1).values[..., -k:])


def test_top_k_takes_k_of_equal_ones() -> None:
    assert ((top_k_gates(torch.full((1, 2, 4), 0.25), 2) > 0).sum(-1) == 2).all()


def test_experts_are_slices() -> None:
    gates = torch.rand(T, N, E)
    hidden = torch.randn(T, N, E * H)
    for j in range(E):
        own = slice(j * H, (j + 1) * H)
        torch.testing.assert_close(gate_hidden(hidden, gates)[..., own], hidden[..., own] * gates[..., j : j + 1])


@pytest.mark.parametrize("kind", ["swiglu", "gelu"])
def test_gated_sum_equals_the_loop_over_experts(kind: str) -> None:
    x, gates = torch.randn(T, N, D), torch.rand(T, N, E)
    expected = torch.zeros(T, N, D)
    if kind == "swiglu":
        layer: nn.Module = randomised(SwiGLUExperts(T, E, D, H))
    else:
        layer = randomised(GELUExperts(T, E, D, H, D))
    p = dict(layer.named_parameters())
    for t in range(T):
        for j in range(E):
            own = slice(j * H, (j + 1) * H)
            up = x[t] @ p["up.weight"][t][:, own] + p["up.bias"][t][:, own]
            if kind == "swiglu":
                hidden = silu(x[t] @ p["gate.weight"][t][:, own] + p["gate.bias"][t][:, own]) * up
                out = hidden @ p["down.weight"][t][own]
            else:
                out = gelu(up) @ p["down.weight"][t][own] + p["shift"][t, j]
            expected[t] += gates[t, :, j : j + 1] * out
    torch.testing.assert_close(layer(x, gates), expected, **TOLERANCE)


def test_an_idle_expert_has_no_say() -> None:
    layer = randomised(
        SparseSwiGLU(SoftmaxRouter(T, D, E, 2), SwiGLUExperts(T, E, D, H), TokenwiseSwiGLU(T, D, H), 1.5)
    )
    x = torch.randn(T, 1, D)
    gates = layer.router(x)
    before = layer(x)
    with torch.no_grad():
        for j in range(E):
            for t in range(T):
                if gates[t, 0, j] == 0:
                    layer.experts.up.weight[t][:, j * H : (j + 1) * H] = 1e3
    assert torch.equal(layer(x), before)
    with torch.no_grad():
        layer.experts.up.weight.mul_(2)
    assert (layer(x) != before).any(-1).all()


def test_relu_experts_train_with_both_routers_and_run_with_one() -> None:
    layer = randomised(ReLUSparseFFN(T, E, D, H, D, l1_weight=0.5))
    x = torch.randn(T, N, D)
    inference = layer.experts(x, layer.router(x).relu())
    assert torch.equal(layer(x), inference)
    layer.train()
    both = layer.experts(x, layer.training_router(x).relu())
    torch.testing.assert_close(layer(x), (inference + both) / 2, **TOLERANCE)
    assert layer.auxiliary is not None
    layer.auxiliary.backward()
    torch.testing.assert_close(layer.auxiliary, 0.5 * layer.router(x).relu().sum(-1).mean())
    assert layer.training_router.weight.grad is None  # the penalty applies to the inference router only
    assert layer.router.weight.grad is not None


def test_losses_of_the_softmax_router() -> None:
    router = randomised(SoftmaxRouter(1, D, E, 2, balance_weight=3.0, z_weight=0.1)).train()
    x = torch.randn(1, N, D)
    gates = router(x)
    logits = x[0] @ router.router.weight[0]
    p = logits.softmax(-1)
    share = (gates[0] > 0).float().mean(0) / 2
    expected = 3.0 * E * (share * p.mean(0)).sum() + 0.1 * logits.exp().sum(-1).log().square().mean()
    assert router.auxiliary is not None
    torch.testing.assert_close(router.auxiliary, expected)
    with torch.no_grad():
        router.router.weight.zero_()  # all experts equally likely: the balance term is 1, z is log(E)^2
    router(x)
    torch.testing.assert_close(router.auxiliary, torch.tensor(3.0) + 0.1 * torch.tensor(float(E)).log().square())


@pytest.mark.parametrize("variant", ["rankmixer-moe", "zenith-pp"])
def test_router_losses_reach_the_model_in_training_only(variant: str) -> None:
    model = make_model(make_config(variant, "1:1"))
    rows = make_rows(4, 1)
    model(rows)
    assert model.auxiliary_loss() == 0
    model.train()
    model(rows)
    loss = model.auxiliary_loss()
    assert loss > 0
    loss.backward()
    routers = {n: p for n, p in model.named_parameters() if ".router." in n}
    assert len(routers) >= 4
    assert all(p.grad is not None and p.grad.any() for p in routers.values())
    assert model.eval().auxiliary_loss() == 0

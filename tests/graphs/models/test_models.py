"""Each architecture against its paper's equations, written out here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, silu

from graphs.layers.tokenwise import RMSNorm, TokenwiseFFN, TokenwiseSwiGLU
from graphs.layers.ugsep import Tokens
from graphs.models.ranking_model import RankingModel
from graphs.models.rankmixer import RankMixerLayer
from graphs.models.tokenmixer_large import TokenMixerLargeLayer
from graphs.models.unimixer import UniMixerLayer
from graphs.models.zenith import ZenithLayer
from graphs.models.zenith_pp import ZenithPPLayer
from tests.graphs.model_laws import make_config, make_model, make_rows

T, D = 6, 24  # ratio 2:1
TOLERANCE = {"atol": 2e-5, "rtol": 1e-5}  # FP32 sums of at most 144 products of order 1, a few layers deep


def unmasked(variant: str, **changes: Any) -> tuple[RankingModel, nn.Module, Tensor]:
    """Return the paper's model, its first layer, and tokens [N, T, D]."""
    model = make_model(make_config(variant, "2:1", ug_sep=False, **changes))
    layer = next(iter(model.get_submodule("layers").children()))
    return model, layer, torch.randn(5, T, D, generator=torch.Generator().manual_seed(3))


def run(layer: nn.Module, x: Tensor) -> Tensor:
    out = layer(Tokens(None, x.transpose(0, 1)))
    assert out.user is None
    return out.item.transpose(0, 1)  # type: ignore[no-any-return]  # modules are untyped calls


def rms(x: Tensor, norm: nn.Module) -> Tensor:
    assert isinstance(norm, RMSNorm)
    assert norm.eps is not None
    return x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight


def swiglu(x: Tensor, layer: nn.Module) -> Tensor:
    assert isinstance(layer, TokenwiseSwiGLU)
    rows = []
    for t in range(x.shape[1]):
        gate, up, down = ((p.weight[t], p.bias[t]) for p in (layer.gate, layer.up, layer.down) if p.bias is not None)
        hidden = silu(x[:, t] @ gate[0] + gate[1]) * (x[:, t] @ up[0] + up[1])
        rows.append(hidden @ down[0] + down[1])
    return torch.stack(rows, 1)


def mix(x: Tensor, heads: int) -> Tensor:
    """s^h = concat_t x_t^(h), by the definition."""
    width = x.shape[-1] // heads
    rows = [torch.cat([x[:, t, h * width : (h + 1) * width] for t in range(x.shape[1])], -1) for h in range(heads)]
    return torch.stack(rows, 1)


def test_rankmixer() -> None:
    _, layer, x = unmasked("rankmixer")
    assert isinstance(layer, RankMixerLayer)
    network = layer.network.item
    assert isinstance(network, TokenwiseFFN)
    assert network.up.bias is not None
    assert network.down.bias is not None

    def ln(x: Tensor, norm: nn.Module) -> Tensor:
        assert isinstance(norm, nn.LayerNorm)
        return layer_norm(x, (D,), norm.weight, norm.bias)

    s = ln(mix(x, T) + x, layer.mix_norm.item)
    hidden = [gelu(s[:, t] @ network.up.weight[t] + network.up.bias[t]) for t in range(T)]
    y = torch.stack([h @ network.down.weight[t] + network.down.bias[t] for t, h in enumerate(hidden)], 1)
    torch.testing.assert_close(run(layer, x), ln(y + s, layer.norm.item), **TOLERANCE)


@pytest.mark.parametrize("rows", [(0, 0), (1, 2)], ids=["H=T", "H=3"])
def test_tokenmixer_large(rows: tuple[int, int]) -> None:
    _, layer, x = unmasked("tokenmixer-large", mixed_user_rows=rows[0], mixed_item_rows=rows[1])
    assert isinstance(layer, TokenMixerLargeLayer)
    heads = sum(rows) or T
    h = mix(x, heads)
    h = swiglu(rms(h, layer.mixing.item.norm), layer.mixing.item.network) + h
    reverted = h.reshape(5, heads, T, D // heads).transpose(1, 2).reshape(5, T, D)
    expected = swiglu(rms(reverted, layer.reverting.item.norm), layer.reverting.item.network) + x
    torch.testing.assert_close(run(layer, x), expected, **TOLERANCE)


def test_tokenmixer_large_residual_between_layers() -> None:
    """Every second of five layers: block 2 adds the tokens, block 4 the output of block 2, block 5 is the last."""
    model = make_model(make_config("tokenmixer-large", "2:1", layers=5, residual_every=2))
    assert [model.config.adds_earlier(i) for i in range(5)] == [False, True, False, True, False]
    seen: list[tuple[Tensor, Tensor]] = []
    hooks = [
        layer.register_forward_hook(lambda _, given, out: seen.append((given[0].item, out.item)))
        for layer in model.get_submodule("layers").children()
    ]
    model(make_rows(3, 1))
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(seen[2][0], seen[1][1] + seen[0][0])
    torch.testing.assert_close(seen[3][0], seen[2][1])
    torch.testing.assert_close(seen[4][0], seen[3][1] + seen[2][0])


def test_zenith() -> None:
    _, layer, x = unmasked("zenith", fusion_width=12, layers=1)
    assert isinstance(layer, ZenithLayer)
    fusion = layer.fusion
    o = x @ x.transpose(1, 2) @ x @ fusion.retoken.weight.T + fusion.mlp(x)  # [N, T, k]
    fused = rms(o.reshape(5, T // 2, D), layer.fusion_norm.item)
    expected = rms(swiglu(fused, layer.boost.item) + fused, layer.boost_norm.item)
    torch.testing.assert_close(run(layer, x), expected, **TOLERANCE)


def test_zenith_pp() -> None:
    _, layer, x = unmasked("zenith-pp", experts=0)
    assert isinstance(layer, ZenithPPLayer)
    heads, d = 3, D // 3
    projections = (layer.attention.query.item, layer.attention.key.item, layer.attention.value.item)
    q, k, v = (
        torch.stack([x[:, t] @ p.weight[t] for t in range(T)], 1).reshape(5, T, heads, d).transpose(1, 2)
        for p in projections
    )
    o = ((q @ k.transpose(2, 3)) / d**0.5).softmax(-1) @ v
    fused = rms(o.transpose(1, 2).reshape(5, T, D) + x, layer.attention_norm.item)
    expected = rms(swiglu(fused, layer.boost.item) + fused, layer.boost_norm.item)
    torch.testing.assert_close(run(layer, x), expected, **TOLERANCE)


@pytest.mark.parametrize("variant", ["unimixer", "unimixing-lite"])
def test_unimixer(variant: str) -> None:
    _, layer, x = unmasked(variant)
    assert isinstance(layer, UniMixerLayer)
    y = x * 0.5
    local, across = layer.block.mixing.matrices()
    seen = rms(y, layer.stream_norm.item) + x
    blocks = seen.reshape(5, T * D // 6, 6)
    h = torch.stack([blocks[:, i] @ local[i] for i in range(T * D // 6)], 1)
    mixed = torch.einsum("ij,njb->nib", across, h).reshape(5, T, D)
    o = swiglu(rms(mixed + seen, layer.block.norm.item), layer.block.network.item)
    got_x, got_y = layer(Tokens(None, x.transpose(0, 1)), Tokens(None, y.transpose(0, 1)))
    torch.testing.assert_close(got_x.item.transpose(0, 1), rms(x + o, layer.norm.item), **TOLERANCE)
    torch.testing.assert_close(got_y.item.transpose(0, 1), y + o, **TOLERANCE)


def test_pooled_tokens_are_the_mean_of_both_sides() -> None:
    user, item = torch.randn(4, 3, D), torch.randn(2, 3, D)
    torch.testing.assert_close(Tokens(user, item).mean(), torch.cat([user, item]).mean(0))
    torch.testing.assert_close(Tokens(None, item).mean(), item.mean(0))

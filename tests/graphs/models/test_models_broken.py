"""Models with one mistake each, which the checks of the law must catch."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

import graphs.layers.ugsep
import graphs.models.rankmixer
import graphs.models.tokenmixer_large
import graphs.models.zenith
import graphs.models.zenith_pp
from graphs.layers.block_mixing import BlockMixing
from graphs.layers.sinkhorn import sinkhorn, symmetrised
from graphs.layers.tokenwise import RMSNorm
from graphs.layers.ugsep import Tokens, masked_mix, separate, ug_attention
from graphs.models.ranking_model import RankingModel
from graphs.models.zenith import RetokenizedSelfAttention, recut
from tests.graphs.model_laws import (
    check_no_gradient,
    check_user_rows_fixed,
    check_users_reach_items,
    make_config,
    make_model,
    make_rows,
)


def check_law(model: RankingModel) -> None:
    check_user_rows_fixed(model, make_rows(4, 1), make_rows(4, 2))
    check_no_gradient(model, make_rows(4, 1))
    check_users_reach_items(model, make_rows(4, 1), make_rows(4, 2))


def unmasked_mix(x: Tokens, user_rows: int, item_rows: int) -> Tokens:
    assert x.user is not None
    mixed = masked_mix(Tokens(None, torch.cat([x.user, x.item])), user_rows, item_rows).item
    return Tokens(mixed[:user_rows], mixed[user_rows:])


def two_towers(x: Tokens, user_rows: int, item_rows: int) -> Tokens:
    """Masked in both directions: item rows no longer read user tokens."""
    mixed = masked_mix(x, user_rows, item_rows)
    n, m = (0 if x.user is None else x.user.shape[0]), x.item.shape[0]
    of_user = mixed.item.shape[-1] * n // (n + m)
    return Tokens(mixed.user, torch.cat([mixed.item[..., :of_user] * 0, mixed.item[..., of_user:]], -1))


@pytest.mark.parametrize("compensation", [True, False])
def test_revert_left_unmasked(monkeypatch: pytest.MonkeyPatch, compensation: bool) -> None:
    model = make_model(make_config("tokenmixer-large", "2:1", compensation=compensation))
    check_law(model)
    calls = iter(range(1000))

    def second_unmasked(x: Tokens, user_rows: int, item_rows: int) -> Tokens:
        return (unmasked_mix if next(calls) % 2 else masked_mix)(x, user_rows, item_rows)

    monkeypatch.setattr(graphs.models.tokenmixer_large, "masked_mix", second_unmasked)
    with pytest.raises(AssertionError, match="user rows of output 0 changed"):
        check_user_rows_fixed(model, make_rows(4, 1), make_rows(4, 2))
    with pytest.raises(AssertionError, match="have a gradient to an item"):
        check_no_gradient(model, make_rows(4, 1))


def test_mixing_left_unmasked(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(make_config("rankmixer", "1:2"))
    check_law(model)
    monkeypatch.setattr(graphs.models.rankmixer, "masked_mix", unmasked_mix)
    with pytest.raises(AssertionError, match="user rows of output 0 changed"):
        check_law(model)


def test_both_directions_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(make_config("rankmixer", "2:1", compensation=False))
    check_law(model)
    monkeypatch.setattr(graphs.models.rankmixer, "masked_mix", two_towers)
    with pytest.raises(AssertionError, match="do not change with the user"):
        check_users_reach_items(model, make_rows(4, 1), make_rows(4, 2))


def test_self_attention_left_unmasked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zenith: (X X^T)[user, item] is kept, so user tokens read item tokens."""
    model = make_model(make_config("zenith", "3:1"))
    check_law(model)
    masked = RetokenizedSelfAttention.forward

    def unmasked(self: RetokenizedSelfAttention, x: Tokens) -> Tokens:
        assert x.user is not None
        fused = masked(self, Tokens(None, x.everything())).item
        return Tokens(fused[: len(x.user)], fused[len(x.user) :])

    monkeypatch.setattr(RetokenizedSelfAttention, "forward", unmasked)
    with pytest.raises(AssertionError, match="user rows of output 0 changed"):
        check_user_rows_fixed(model, make_rows(4, 1), make_rows(4, 2))
    with pytest.raises(AssertionError, match="have a gradient to an item"):
        check_no_gradient(model, make_rows(4, 1))


@pytest.mark.parametrize(
    ("variant", "module"), [("zenith-pp", graphs.models.zenith_pp), ("rankmixer-regrouped", graphs.layers.ugsep)]
)
def test_attention_left_unmasked(monkeypatch: pytest.MonkeyPatch, variant: str, module: ModuleType) -> None:
    """Zenith++'s fusion, and the separated residual: U queries see G keys."""
    model = make_model(make_config(variant, "1:2" if variant == "zenith-pp" else "2:1"))
    check_law(model)

    def unmasked(query: Tokens, key: Tokens, value: Tokens, heads: int) -> Tokens:
        assert query.user is not None
        whole_query, whole_key, whole_value = (Tokens(None, t.everything()) for t in (query, key, value))
        out = ug_attention(whole_query, whole_key, whole_value, heads).item
        return Tokens(out[: len(query.user)], out[len(query.user) :])

    monkeypatch.setattr(module, "ug_attention", unmasked)
    with pytest.raises(AssertionError, match="user rows of output 0 changed"):
        check_user_rows_fixed(model, make_rows(4, 1), make_rows(4, 2))


def test_straddling_token_taken_for_a_user_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zenith with k = D / 2: the values of 5 user tokens fill 2.5 new tokens, so the third is not a user token."""
    sizes = {"user_tokens": 5, "item_tokens": 3, "fusion_width": 12, "layers": 1}
    model = make_model(make_config("zenith", "1:1", **sizes))
    check_law(model)

    def wrong(user: Tensor | None, item: Tensor, width: int) -> Tokens:
        right = recut(user, item, width)
        assert right.user is not None
        return Tokens(torch.cat([right.user[:-1], right.item[:1]]), torch.cat([right.user[-1:], right.item[1:]]))

    monkeypatch.setattr(graphs.models.zenith, "recut", wrong)
    with pytest.raises(AssertionError, match="user rows of output 0 changed"):
        check_user_rows_fixed(model, make_rows(4, 1), make_rows(4, 2))


class FlattenedRMSNorm(nn.Module):
    """The mistake: one root mean square over the whole vector of all tokens."""

    def __init__(self, user: RMSNorm, item: RMSNorm) -> None:
        super().__init__()
        self.user, self.item = user, item

    def forward(self, x: Tokens) -> Tokens:
        everything = x.everything()  # [T, N, D]
        scale = (everything.square().mean((0, 2), keepdim=True) + 1e-6).rsqrt()  # [1, N, 1]
        user = None if x.user is None else x.user * scale * self.user.weight
        return Tokens(user, x.item * scale * self.item.weight)


@pytest.mark.parametrize("path", ["layers.0.block.norm", "layers.1.stream_norm", "layers.0.norm"])
def test_norm_over_the_flattened_vector(path: str) -> None:
    model = make_model(make_config("unimixer", "1:1"))
    check_law(model)
    norm = model.get_submodule(path)
    assert isinstance(norm.user, RMSNorm)
    assert isinstance(norm.item, RMSNorm)
    model.set_submodule(path, FlattenedRMSNorm(norm.user, norm.item))
    with pytest.raises(AssertionError, match="changed with the items"):
        check_user_rows_fixed(model, make_rows(4, 1), make_rows(4, 2))


def masked_before_sinkhorn(mixing: BlockMixing) -> tuple[Tensor, Tensor]:
    """The mistake: mask the scores of W_G[user, item] first, then make them doubly stochastic."""
    local = sinkhorn(symmetrised(mixing.local()), mixing.temperature, mixing.steps)
    scores = symmetrised(mixing.across())[0]
    u = mixing.user_blocks
    scores = torch.cat([torch.cat([scores[:u, :u], torch.full_like(scores[:u, u:], -1e4)], 1), scores[u:]])
    return local, sinkhorn(scores, mixing.temperature, mixing.steps)


def user_share(matrices: tuple[Tensor, Tensor], user_blocks: int) -> float:
    """Mean share of a G block's input that comes from U blocks."""
    return float(matrices[1][user_blocks:, :user_blocks].sum(1).mean())


@pytest.mark.parametrize("variant", ["unimixer", "unimixing-lite"])
@pytest.mark.parametrize("steps", [20, 400])
def test_mask_before_sinkhorn(variant: str, steps: int) -> None:
    """Sinkhorn then drives W_G[G, U] to 0, about as 1 / steps: users no longer reach the items."""
    model = make_model(make_config(variant, "1:1", sinkhorn_steps=steps))
    mixing = model.get_submodule("layers.0.block.mixing")
    assert isinstance(mixing, BlockMixing)
    u = mixing.user_blocks
    with torch.no_grad():
        right, wrong = user_share(mixing.matrices(), u), user_share(masked_before_sinkhorn(mixing), u)
    # 50 % of the blocks are U, and random scores ignore sides: on average about 50 % comes from U.
    assert 0.3 < right < 0.7
    assert wrong < 2 / steps
    folded = mixing.fold()
    assert folded.user_to_item is not None
    assert float(folded.user_to_item.detach().sum(0).mean()) == pytest.approx(right, rel=1e-5)


def test_item_token_taken_for_a_user_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """One item token treated as U, in every architecture that separates tokens this way."""

    def shifted(user: Tensor, item: Tensor, ug_sep: bool) -> Tokens:
        return separate(torch.cat([user[:-1], item[:1]]), torch.cat([user[-1:], item[1:]]), ug_sep)

    for variant, module in (
        ("rankmixer", "rankmixer"),
        ("tokenmixer-large", "tokenmixer_large"),
        ("zenith", "zenith"),
        ("zenith-pp", "zenith_pp"),
        ("unimixer", "unimixer"),
    ):
        model = make_model(make_config(variant, "1:1"))
        monkeypatch.setattr(f"graphs.models.{module}.separate", shifted)
        with pytest.raises(AssertionError, match="changed with the items"):
            check_user_rows_fixed(model, make_rows(4, 1), make_rows(4, 2))

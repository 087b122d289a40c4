"""The law of UG-Sep on every architecture, ratio and compensation: user rows are the same for every candidate."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graphs.layers.ugsep import Tokens, masked_mix, ug_attention
from tests.graphs.model_laws import (
    RATIOS,
    VARIANTS,
    check_no_gradient,
    check_user_rows_fixed,
    check_users_reach_items,
    make_config,
    make_model,
    make_rows,
    side_from,
)

SEEDS = st.integers(0, 2**31 - 1)
SCALES = st.sampled_from([0.0, 1.0, 1e3])


@pytest.mark.parametrize("compensation", [True, False], ids=["compensated", "plain"])
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_user_rows_do_not_know_the_items(variant: str, ratio: str, compensation: bool) -> None:
    model = make_model(make_config(variant, ratio, compensation=compensation))

    @settings(max_examples=6, deadline=None)
    @given(seeds=st.tuples(SEEDS, SEEDS), rows=st.integers(1, 5), scale=SCALES)
    def law(seeds: tuple[int, int], rows: int, scale: float) -> None:
        check_user_rows_fixed(model, make_rows(rows, seeds[0]), make_rows(rows, seeds[1], scale))

    law()
    check_no_gradient(model, make_rows(3, 1))
    # Different users: neither the id (checked below) nor the dense profile is the same.
    one, other = make_rows(4, 1), make_rows(4, 2)
    assert (one["profile"] != other["profile"]).all()
    check_users_reach_items(model, one, other)


@pytest.mark.parametrize("compensation", [True, False], ids=["compensated", "plain"])
def test_a_retokenized_token_that_straddles_both_sides_is_an_item_token(compensation: bool) -> None:
    """Zenith with k = D / 2: 5 + 3 tokens become 4, and 60 user values fill 2.5 of them."""
    sizes = {"user_tokens": 5, "item_tokens": 3, "fusion_width": 12, "layers": 2}
    config = make_config("zenith", "1:1", compensation=compensation, **sizes)
    assert config.token_counts() == [(5, 3), (2, 2), (1, 1)]
    model = make_model(config)
    check_user_rows_fixed(model, make_rows(4, 1), make_rows(4, 2))
    check_no_gradient(model, make_rows(4, 1))
    check_users_reach_items(model, make_rows(4, 1), make_rows(4, 2))
    assert config.counts().parameters == model.dense_parameters()


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_unmasked_is_one_model_over_all_tokens(variant: str, ratio: str) -> None:
    model = make_model(make_config(variant, ratio, ug_sep=False))
    with pytest.raises(AssertionError):  # there are no user rows
        check_user_rows_fixed(model, make_rows(3, 1), make_rows(3, 2))
    check_users_reach_items(model, make_rows(4, 1), make_rows(4, 2))


@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_are_independent(variant: str) -> None:
    model = make_model(make_config(variant, "2:1"))
    one, other = make_rows(6, 1), make_rows(6, 2)
    changed = {k: torch.cat([v[:2], other[k][2:3], v[3:]]) for k, v in one.items()}
    with torch.no_grad():
        before, after = model(one), model(changed)
    for task in before:
        assert torch.equal(before[task] != after[task], torch.arange(6) == 2), task


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_task_has_logits_that_read_both_sides(variant: str) -> None:
    model = make_model(make_config(variant, "1:1"))
    one, other = make_rows(5, 1), make_rows(5, 2)
    with torch.no_grad():
        logits = model(one)
        assert list(logits) == ["like", "share"]
        assert all(v.shape == (5,) and v.isfinite().all() for v in logits.values())
        assert (logits["like"] != logits["share"]).all()
        for side in ("user", "item"):
            moved = model(side_from(one, other, side))
            assert all((moved[t] != logits[t]).all() for t in logits)


def reference_mix(x: torch.Tensor, rows: int, user: int, user_rows: int) -> torch.Tensor:
    """As in the paper: mix all tokens [N, T, W], then multiply by Mask[h, j] = 0 for h < c_u and j in G."""
    n, tokens, width = x.shape
    slices = x.reshape(n, tokens, rows, width // rows).transpose(1, 2).clone()  # [N, H, T, w]
    slices[:, :user_rows, user:] = 0
    return slices.reshape(n, rows, tokens * (width // rows))


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 4),
    m=st.integers(1, 4),
    user_rows=st.integers(1, 4),
    item_rows=st.integers(1, 4),
    w=st.integers(1, 3),
    seed=SEEDS,
)
def test_masked_mix_is_mixing_times_the_mask(
    n: int, m: int, user_rows: int, item_rows: int, w: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = user_rows + item_rows
    x = torch.randn(n + m, 3, rows * w, generator=generator)
    mixed = masked_mix(Tokens(x[:n], x[n:]), user_rows, item_rows)
    expected = reference_mix(x.transpose(0, 1), rows, n, user_rows).transpose(0, 1)
    assert mixed.user is not None
    assert torch.equal(torch.cat([mixed.user, mixed.item]), expected)
    # Reverting is the same operation with the token counts as row counts; unmasked, it is the paper's inverse.
    reverted = masked_mix(mixed, n, m)
    expected = reference_mix(expected.transpose(0, 1), n + m, user_rows, n).transpose(0, 1)
    assert reverted.user is not None
    assert torch.equal(torch.cat([reverted.user, reverted.item]), expected)
    unmasked = masked_mix(masked_mix(Tokens(None, x), user_rows, item_rows), n, m)
    assert unmasked.user is None
    assert torch.equal(unmasked.item, x)


@pytest.mark.parametrize("heads", [1, 3])
def test_ug_attention_is_attention_with_the_mask(heads: int) -> None:
    generator = torch.Generator().manual_seed(heads)
    q_u, q_g, n, m, width = 2, 3, 4, 1, 6
    q = torch.randn(q_u + q_g, 5, width, generator=generator)
    k, v = torch.randn(2, n + m, 5, width, generator=generator)
    out = ug_attention(Tokens(q[:q_u], q[q_u:]), Tokens(k[:n], k[n:]), Tokens(v[:n], v[n:]), heads)
    mask = torch.ones(q_u + q_g, n + m, dtype=torch.bool)
    mask[:q_u, n:] = False

    def split_heads(x: torch.Tensor) -> torch.Tensor:
        return x.permute(1, 0, 2).reshape(5, -1, heads, width // heads).transpose(1, 2)

    expected = torch.nn.functional.scaled_dot_product_attention(*map(split_heads, (q, k, v)), attn_mask=mask)
    expected = expected.transpose(1, 2).reshape(5, -1, width).transpose(0, 1)
    assert out.user is not None
    # Sums of at most 6 products of order 1 in FP32: a few units of 6e-8.
    torch.testing.assert_close(torch.cat([out.user, out.item]), expected, atol=2e-6, rtol=0)

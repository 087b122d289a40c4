"""Sequence models: split exactly, with the formulas' FLOPs; padding and later candidates have no influence."""

from __future__ import annotations

import operator

import pytest
import torch

from graphs.base.features import of_side
from graphs.split.proof import prove_split
from graphs.split.split import Split, split
from tests.graphs.model_laws import FEATURES, SEQUENCES, make_config, make_model, make_rows, side_from

USERS, ITEMS = ([f.name for f in of_side(FEATURES, side)] for side in ("user", "item"))


def halves(variant: str, **changes: object) -> Split:
    model = make_model(make_config(variant, "1:1", **changes))
    return split(model.for_inference(), (make_rows(3, 0),), user=USERS, item=ITEMS)


@pytest.mark.parametrize("variant", SEQUENCES)
def test_halves_equal_the_whole(variant: str) -> None:
    made = halves(variant)
    counts = make_config(variant, "1:1").counts()
    assert made.user_cost.gemm_flops == counts.user.flops
    # hstu scores the last token: of the others, the last layer needs keys and values only.
    last_alone = variant == "hstu-several"
    assert (made.item_cost.gemm_flops < counts.item.flops) == last_alone
    assert made.item_cost.gemm_flops == counts.item.flops or last_alone
    # FP32 sums of at most 24 products, through two layers and their norms.
    assert prove_split(made, tolerance=1e-5).max_rel <= 1e-5


@pytest.mark.parametrize("variant", SEQUENCES)
def test_the_state_is_keys_and_values(variant: str) -> None:
    config = make_config(variant, "1:1")
    user = config.sides()[0]
    # Per layer K and V [user, D]; onetrans also reads the padding of the history's 4 positions.
    bound = config.layers * 2 * user * config.width * 4 + user * 4
    assert config.layers * 2 * user * config.width * 4 <= halves(variant).state_bytes <= bound


def test_a_mask_that_hides_nothing_is_left_out() -> None:
    """The candidate sees every position, so its scores are not multiplied by ones."""
    module = halves("hstu").item.module
    held = [operator.attrgetter(str(n.target))(module) for n in module.graph.nodes if n.op == "get_attr"]
    assert not any(bool((tensor == 1).all()) for tensor in held if tensor.numel() > 1)


@pytest.mark.parametrize("variant", SEQUENCES)
def test_parameters(variant: str) -> None:
    for tokens in (1, 3):
        config = make_config(variant, "1:1", item_tokens=tokens)
        assert config.counts().parameters == make_model(config).dense_parameters()


@pytest.mark.parametrize("variant", SEQUENCES)
def test_padding_is_not_seen(variant: str) -> None:
    """The embedding of padding and of its positions changes nothing."""
    model = make_model(make_config(variant, "1:1"))
    rows = make_rows(5, 3)
    rows["history"][:, 2:] = 0
    rows["history"][:, :2] = 4
    rows["iid"][:] = 5
    with torch.no_grad():
        before = model(rows)
        table = model.get_submodule("embedding.tables.iid")
        assert isinstance(table, torch.nn.Embedding)
        table.weight[0] += 1.0
        for task, logits in model(rows).items():
            # What is hidden has weight 0, or e^-30000, which is 0 in FP32.
            assert torch.equal(logits, before[task])
        table.weight[4] += 1.0
        assert not torch.equal(model(rows)["like"], before["like"])


@pytest.mark.parametrize("variant", SEQUENCES)
def test_users_without_a_history_have_finite_scores(variant: str) -> None:
    model = make_model(make_config(variant, "1:1"))
    rows = make_rows(4, 3)
    rows["history"][:] = 0
    with torch.no_grad():
        assert all(bool(v.isfinite().all()) for v in model(rows).values())


def test_the_order_of_the_history_matters() -> None:
    for variant in SEQUENCES:
        model = make_model(make_config(variant, "1:1"))
        rows = make_rows(4, 3)
        rows["history"] = torch.tensor([[1, 2, 3, 4]]).repeat(4, 1)
        turned = {**rows, "history": rows["history"].flip(1)}
        with torch.no_grad():
            assert (model(rows)["like"] - model(turned)["like"]).abs().min() > 1e-6


def test_without_a_mask_nothing_is_reused() -> None:
    config = make_config("onetrans", "1:1", mask="full")
    assert config.sides() == (0, 8)
    assert config.counts().parameters == make_model(config).dense_parameters()
    unmasked, masked = halves("onetrans", mask="full"), halves("onetrans")
    assert unmasked.unmasked
    assert (
        unmasked.reusable_share < 0.3 < 0.6 < masked.reusable_share
    )  # the tokens of a tiny model are a quarter of it
    model = make_model(config)
    one, other = make_rows(3, 1), make_rows(3, 2)
    with torch.no_grad():
        assert not torch.equal(model(one)["like"], model(side_from(one, other, "user"))["like"])

"""The exported model: equal scores, without training-only modules and with constants folded."""

from __future__ import annotations

import pytest
import torch

from graphs.base.errors import UgsepError
from graphs.layers.block_mixing import BlockMixing, FixedBlockMixing
from graphs.layers.sinkhorn import sinkhorn, symmetrised
from graphs.models.unimixer import UniMixer
from graphs.trace.trace import trace
from tests.graphs.model_laws import VARIANTS, make_config, make_model, make_rows


@pytest.mark.parametrize("ug_sep", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_same_scores_and_shared_weights(variant: str, ug_sep: bool) -> None:
    model = make_model(make_config(variant, "2:1", ug_sep=ug_sep))
    rows = make_rows(4, 1)
    model.train()
    model(rows)  # leaves training-only tensors behind
    exported = model.for_inference()
    assert not exported.training
    assert model.training
    own = {p.data_ptr() for p in model.parameters()}
    shared = [p for n, p in exported.named_parameters() if ".mixing." not in n]
    assert all(p.data_ptr() in own for p in shared)
    model.eval()
    with torch.no_grad():
        for task, logits in model(rows).items():
            # The folded matrices are equal and multiplied in the same order.
            torch.testing.assert_close(exported(rows)[task], logits, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("variant", ["rankmixer-moe", "tokenmixer-large-split", "zenith-pp"])
def test_training_only_parts_are_not_traced(variant: str) -> None:
    model = make_model(make_config(variant, "1:1", layers=1 if variant != "tokenmixer-large-split" else 2))
    reached = set(dict(trace(model.for_inference(), (make_rows(3, 1),)).module.named_parameters()))
    assert any("layers" in n for n in reached)
    names = {n for n, _ in model.named_parameters()}
    only_training = {n for n in names if "auxiliary_heads" in n or "training_router" in n}
    if variant != "zenith-pp":
        assert only_training
    assert not any("training" in n or "auxiliary" in n for n in reached)


def unimixer(variant: str) -> UniMixer:
    model = make_model(make_config(variant, "2:1"))
    assert isinstance(model, UniMixer)
    return model


@pytest.mark.parametrize("variant", ["unimixer", "unimixing-lite"])
def test_unimixer_exports_final_matrices_only(variant: str) -> None:
    exported = unimixer(variant).for_inference()
    mixings = [m for m in exported.modules() if isinstance(m, (BlockMixing, FixedBlockMixing))]
    assert [type(m) for m in mixings] == [FixedBlockMixing] * 2
    names = {n.rsplit(".", 1)[1] for n, _ in exported.named_parameters() if ".mixing." in n}
    assert names == {"user_local", "item_local", "user_to_user", "user_to_item", "item_to_item"}
    operators = {str(n.target) for n in trace(exported, (make_rows(3, 1),)).module.graph.nodes}
    assert not [o for o in operators if "exp" in o.split(".")[1:2] or "logsumexp" in o]


def test_temperature_falls_while_training_and_is_kept() -> None:
    model = unimixer("unimixer")
    temperatures = []
    for fraction in (0.0, 0.5, 1.0):
        model.at_progress(fraction)
        temperatures.append(float(model.get_buffer("layers.1.block.mixing.temperature")))
    assert temperatures == pytest.approx([1.0, 0.05**0.5, 0.05])
    assert float(model.state_dict()["layers.0.block.mixing.temperature"]) == pytest.approx(0.05)
    mixing = model.get_submodule("layers.0.block.mixing")
    assert isinstance(mixing, BlockMixing)
    local, _ = mixing.matrices()
    assert local.isfinite().all()
    assert local.max() > 0.9  # near a permutation


@pytest.mark.parametrize("temperature", [1.0, 0.05])
def test_sinkhorn_is_doubly_stochastic(temperature: float) -> None:
    scores = symmetrised(torch.randn(3, 7, 7, generator=torch.Generator().manual_seed(2)))
    matrix = sinkhorn(scores, torch.tensor(temperature), steps=200)
    assert torch.equal(scores, scores.mT)
    assert (matrix >= 0).all()
    # Columns come last: exact to FP32 rounding of 7 terms. Rows converge, slowly near a permutation.
    torch.testing.assert_close(matrix.sum(-2), torch.ones(3, 7), atol=1e-5, rtol=0)
    torch.testing.assert_close(matrix.sum(-1), torch.ones(3, 7), atol=2e-2, rtol=0)
    plain = (scores[0].double() / temperature).exp()
    for _ in range(200):
        plain = plain / plain.sum(-1, keepdim=True)
        plain = plain / plain.sum(-2, keepdim=True)
    torch.testing.assert_close(matrix[0].double(), plain, atol=1e-4, rtol=0)


def test_middle_logits_are_trained() -> None:
    model = make_model(make_config("tokenmixer-large-split", "1:1")).train()
    labels = {task: torch.tensor([0.0, 1.0, 1.0]) for task in ("like", "share")}
    model(make_rows(3, 1))
    with pytest.raises(UgsepError, match=r"auxiliary_weight needs the labels; call auxiliary_loss\(labels\)"):
        model.auxiliary_loss()
    loss = model.auxiliary_loss(labels)
    assert loss > 0
    loss.backward()
    heads = model.get_submodule("auxiliary_heads")
    assert len(list(heads.children())) == 3  # all layers but the last
    assert all(p.grad is not None and p.grad.any() for n, p in heads.named_parameters() if "weight" in n)
    # The middle logits do not depend on the last layer, so their loss has no gradient there.
    assert all(p.grad is None for p in model.get_submodule("layers.3").parameters())
    assert model.eval().auxiliary_loss(labels) == 0

"""Masks that are made for all rows, as transformers makes them, are constants of one row."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphs.split.proof import prove_split
from graphs.split.split import split
from tests.graphs.split.blocks.sequence_models import (
    EXACT,
    IDS,
    ITEMS,
    TOTAL,
    WIDTH,
    Attention,
    Layer,
    Sequence,
    made,
    sequence_example,
)
from tests.suites import slow_but

LAST = 2 * WIDTH  # FLOPs of the head, which only the last position has


def _sees(there: Tensor) -> Tensor:
    """Return [N, 1, L, L]: causal, within one of the parts that positions count from 0, and not padding."""
    rows = there.shape[0]
    at = torch.arange(rows)[:, None, None, None]
    i, j = torch.arange(TOTAL)[None, None, :, None], torch.arange(TOTAL)[None, None, None, :]
    places = torch.arange(TOTAL).expand(rows, -1)
    parts = (torch.diff(places, prepend=places[:, :1] - 1) != 1).cumsum(-1)
    sees = (j <= i) & (parts[at, i] == parts[at, j]) & there[at, j]
    return sees.expand(rows, -1, TOTAL, TOTAL)


def looked_up(layer: Layer, q: Tensor, k: Tensor, v: Tensor, there: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=_sees(there))


def without_padding(layer: Layer, q: Tensor, k: Tensor, v: Tensor, there: Tensor) -> Tensor:
    """Added, and the same in every row: no candidate computes it."""
    mask = torch.where(_sees(torch.ones(q.shape[0], TOTAL, dtype=torch.bool)), 0.0, torch.finfo(torch.float32).min)
    return (q @ k.mT + mask.to(q.dtype)).softmax(-1) @ v


def ones_of_all_rows(layer: Layer, q: Tensor, k: Tensor, v: Tensor, there: Tensor) -> Tensor:
    sees = torch.ones(q.shape[0], 1, TOTAL, TOTAL, dtype=torch.bool).tril()
    return (q @ k.mT).masked_fill(~sees, float("-inf")).softmax(-1) @ v


FORMS: dict[str, Attention] = {f.__name__: f for f in (looked_up, without_padding, ones_of_all_rows)}


@pytest.mark.parametrize("name", slow_but({"looked_up"}, FORMS))
def test_a_mask_made_for_all_rows_hides(name: str) -> None:
    torch.manual_seed(0)
    found = made(Sequence(FORMS[name], layers=1), sequence_example(), ["history"])
    assert found.error <= EXACT
    assert found.split.item_cost.gemm_flops <= found.split.full_cost.gemm_flops * ITEMS / TOTAL + LAST
    assert found.split.unmasked == ()
    # Nothing as large as the mask is computed per candidate.
    graph = found.split.item.module.graph
    sizes = [n.meta["val"].shape[1:].numel() for n in graph.nodes if n.op == "call_function" and _has_rows(n)]
    assert TOTAL * TOTAL not in sizes


def _has_rows(node: torch.fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dim() > 1 and isinstance(value.shape[0], torch.SymInt)


class Merged(nn.Module):
    """GPT-2's layers: weights [in, out], multiplied by addmm after rows and positions were merged."""

    def __init__(self) -> None:
        super().__init__()
        self.ids = nn.Embedding(IDS, WIDTH)
        self.weight, self.bias = nn.Parameter(torch.randn(WIDTH, 3 * WIDTH) / 6), nn.Parameter(torch.randn(3 * WIDTH))
        self.out = nn.Parameter(torch.randn(WIDTH, WIDTH) / 6)

    def forward(self, history: Tensor, item: Tensor) -> Tensor:
        x = self.ids(torch.cat([history, item], 1))
        joint = torch.addmm(self.bias, x.view(-1, WIDTH), self.weight).view(*x.shape[:2], 3 * WIDTH)
        q, k, v = joint.split(WIDTH, 2)
        mixed = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], is_causal=True)[:, 0]
        y = torch.mm(mixed.reshape(-1, WIDTH), self.out).view(x.shape)
        last = torch.arange(TOTAL).expand(x.shape[0], -1).argmax(-1)
        return (x + y).sum(-1)[torch.arange(x.shape[0]), last]


def test_products_of_merged_rows_and_positions() -> None:
    torch.manual_seed(0)
    found = made(Merged(), sequence_example(), ["history"])
    assert found.error <= EXACT
    assert found.split.item_cost.gemm_flops <= found.split.full_cost.gemm_flops * ITEMS / TOTAL


class Addressed(nn.Module):
    """Looks rows up at their own position, in another order of positions than all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs, self.places = nn.Linear(6, 6), nn.Buffer(torch.tensor([[3, 0], [0, 1]]))

    def forward(self, u: Tensor, i: Tensor) -> Tensor:
        rows = torch.arange(u.shape[0])[:, None, None]
        steps = torch.ones(u.shape[0], 4, 1).cumsum(1)
        chosen = (torch.cat([self.pairs(u), i], 1) * steps)[rows, self.places]  # [N, 2, 2, 6]
        return chosen.sum((1, 2, 3))


def test_rows_are_looked_up_at_their_own_position() -> None:
    torch.manual_seed(0)
    example = {"u": torch.randn(5, 2, 6), "i": torch.randn(5, 2, 6)}
    assert made(Addressed(), example, ["u"]).error <= EXACT
    found = split(Addressed().eval(), example, user=["u"], item=["i"])
    called = [n.target for n in found.traced.module.graph.nodes]
    assert torch.ops.aten.cumsum.default not in called
    assert torch.ops.aten.index.Tensor not in called


class Named(nn.Module):
    """A parameter with the name of a constant that the splitter adds."""

    def __init__(self) -> None:
        super().__init__()
        self.picked = nn.Parameter(torch.randn(8))

    def forward(self, u: Tensor, i: Tensor) -> Tensor:
        chosen = torch.cat([u, i], 1)[:, torch.tensor([3, 0, 1])]
        return (chosen * self.picked[:3, None]).sum((1, 2))


def test_added_constants_do_not_take_the_name_of_a_parameter() -> None:
    torch.manual_seed(0)
    example = {"u": torch.randn(5, 2, 6), "i": torch.randn(5, 2, 6)}
    assert made(Named(), example, ["u"]).error <= EXACT


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["GPT2", "Llama"])
@pytest.mark.parametrize("padded", [False, True])
def test_decoders_of_transformers(name: str, attention: str, padded: bool) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    given = {"intermediate_size": 64, "num_key_value_heads": 2} if name == "Llama" else {"n_positions": 16}
    config = getattr(transformers, f"{name}Config")(
        **sizes, **given, vocab_size=50, num_labels=1, pad_token_id=0, use_cache=False, attn_implementation=attention
    )
    core = getattr(transformers, f"{name}ForSequenceClassification")(config).eval()

    class Scores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.core = core

        def forward(self, history: Tensor, item: Tensor) -> Tensor:
            ids = torch.cat([history, item], 1)
            mask = torch.cat([(history != 0).long(), torch.ones_like(item)], 1) if padded else None
            return self.core(input_ids=ids, attention_mask=mask).logits  # type: ignore[no-any-return]  # untyped

    example = {"history": torch.randint(1, 50, (5, 7)), "item": torch.randint(1, 50, (5, 1))}
    found = split(Scores().double(), example, user=["history"], item=["item"])
    # Llama's softmax is computed in single precision: sums of 8 shares, through two layers.
    prove_split(found, tolerance=1e-6 if name == "Llama" and attention == "eager" else EXACT, candidates=(1, 5))
    if attention == "eager" and padded:
        # The mask is a finite number, and of a row that sees only padding the mean of all positions, the item's too.
        assert [u.finite for u in found.unmasked] == [True]
        return
    assert found.unmasked == ()
    # A candidate has one of eight positions.
    assert found.item_cost.gemm_flops <= found.full_cost.gemm_flops / 8 + LAST

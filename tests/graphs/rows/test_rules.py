"""Ops that mix rows are rejected with node and source line; row-wise ones pass, also in the random check."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from graphs.base.errors import UgsepError
from graphs.split.independence import check_rows_independent
from graphs.split.proof import prove_split
from graphs.split.split import split
from graphs.trace.trace import trace
from tests.graphs.row_models import D, Inner, Outer, T, example

MIXES: dict[str, tuple[Callable[[Inner, Tensor, Tensor], Tensor], str, str]] = {
    "mean over rows": (lambda m, x, i: x - x.mean(0), "mean", "reduces over the batch axis"),
    "sum of all": (lambda m, x, i: x / x.sum(), "sum", "reduces over the batch axis"),
    "max of rows": (lambda m, x, i: x - x.max(0).values, "max", "reduces over the batch axis"),
    "softmax over rows": (lambda m, x, i: x.softmax(0), "softmax", "normalises along the batch axis"),
    "sort rows": (lambda m, x, i: x.sort(0).values, "sort", "sorts along the batch axis"),
    "topk of rows": (lambda m, x, i: x + x.topk(1, 0).values, "topk", "sorts along the batch axis"),
    "cumsum": (lambda m, x, i: x.cumsum(0), "cumsum", "accumulates along the batch axis"),
    "flip": (lambda m, x, i: x.flip(0), "flip", "reorders along the batch axis"),
    "roll": (lambda m, x, i: x.roll(1, 0), "roll", "reorders along the batch axis"),
    "first row": (lambda m, x, i: x + x[0], "select", "picks rows by their position"),
    "first rows": (lambda m, x, i: x + x[:1], "slice", "picks rows by their position"),
    "slice of positions": (
        lambda m, x, i: x + x[torch.arange(x.shape[0])[1:]].sum(0),
        "slice",
        "picks rows by their",
    ),
    "in-batch scores": (lambda m, x, i: x[:, 0] @ x[:, 1].T, "matmul", "different axes"),
    "in-batch gram": (
        lambda m, x, i: x[:, 0].T @ x[:, 1] + x[:, 1, :1].sum(-1)[:, None, None],
        "matmul",
        "contracts",
    ),
    "view across rows": (lambda m, x, i: x.view(T, x.shape[0], D).transpose(0, 1), "view", "reshapes"),
    "index by data": (lambda m, x, i: x[i[:, 0]], "index", "indexes the batch axis"),
    "layout mismatch": (lambda m, x, i: x.transpose(0, 1).reshape(-1, D) + x.reshape(-1, D), "add", "different axes"),
    "join rows": (lambda m, x, i: torch.cat([x, x])[: x.shape[0]], "cat", "joins tensors along the batch axis"),
    "einsum": (lambda m, x, i: torch.einsum("btd,ctd->bc", x, x), "einsum", "contracts or pairs"),
    "batch size": (lambda m, x, i: x / x.shape[0], "div", "uses the number of rows as a value"),
    "position": (lambda m, x, i: x + torch.arange(x.shape[0])[:, None, None], "add", "position of a row"),
    "noise": (lambda m, x, i: x + torch.randn(x.shape), "randn", "draws random numbers"),
    "attend to rows": (lambda m, x, i: F.scaled_dot_product_attention(*[x.transpose(0, 1)] * 3), "scaled", "attends"),
    "variance": (lambda m, x, i: x / x.std(0), "std", "reduces over the batch axis"),
    "pad rows": (lambda m, x, i: F.pad(x, (0, 0, 0, 0, 1, 0))[1:], "pad", "pads the batch axis"),
    "norm over rows": (lambda m, x, i: F.layer_norm(x.permute(1, 2, 0), (x.shape[0],)), "layer_norm", "normalises"),
    "branch by data": (
        lambda m, x, i: torch.cond(x.sum() > 0, lambda a: a * 2, lambda a: a * 3, (x,)),
        "sum",
        "reduces",
    ),
    "write a row": (
        lambda m, x, i: x.clone().index_fill_(0, torch.tensor([0]), 1.0),
        "",
        "rows depend on each other",
    ),
}


@pytest.mark.parametrize("name", MIXES)
def test_refuses_ops_that_mix_rows(name: str) -> None:
    work, op, reason = MIXES[name]
    with pytest.raises(UgsepError) as error:
        check_rows_independent(trace(Outer(work).eval(), example()))
    message = str(error.value)
    assert message.startswith(f"rows depend on each other: {op}"), message
    assert reason in message
    assert "in body" in message or "cond" in name, message  # the module path
    assert "(row_models.py:" in message, message  # the source line
    assert "\n" not in message


KEEPS: dict[str, Callable[[Inner, Tensor, Tensor], Tensor]] = {
    "fold and unfold": lambda m, x, i: m.layer(x.view(-1, D)).view(-1, T, 5),
    "fold transposed": lambda m, x, i: m.layer(x.transpose(0, 1).reshape(-1, D)).view(T, -1, 5).transpose(0, 1),
    "token major": lambda m, x, i: (x.transpose(0, 1) @ m.weight).permute(1, 0, 2),
    "last item": lambda m, x, i: x[torch.arange(x.shape[0]), (i[:, 0]).clamp(0, T - 1)],
    "gather": lambda m, x, i: x.gather(1, i[:, :1, None].expand(-1, 1, D)),
    "mask": lambda m, x, i: x.masked_fill((i == 0).unsqueeze(-1), 0).sum(1) / (i != 0).sum(1, keepdim=True).clamp(1),
    "attention": lambda m, x, i: m.attention(x, x, x, key_padding_mask=i == 2, need_weights=False)[0],
    "attention to zeros": lambda m, x, i: m.to_zeros(x, x, x, need_weights=False)[0],
    "masked, to zeros": lambda m, x, i: m.to_zeros(x, x, x, key_padding_mask=i == 2, need_weights=False)[0],
    "zeros and weights": lambda m, x, i: m.extra_keys(x[:, :2], x, x, key_padding_mask=i == 2)[1],
    "zeros for each head": lambda m, x, i: x.repeat_interleave(2, 0) * 3 + x.new_ones(2 * x.shape[0], 1, D),
    "encoder": lambda m, x, i: m.encoder(x),
    "gru": lambda m, x, i: m.gru(x)[1].transpose(0, 1),
    "lstm": lambda m, x, i: m.lstm(x.transpose(0, 1))[0][-1],
    "convolution": lambda m, x, i: m.conv(x),
    "bag": lambda m, x, i: m.bag(i),
    "in place": lambda m, x, i: (x * 2).add_(1.0).relu_(),
    "slice write": lambda m, x, i: _written(x),
    "broadcast parameter": lambda m, x, i: torch.cat([m.table.expand(x.shape[0], -1, -1), x], 1),
    "zeros": lambda m, x, i: torch.cat([x.new_zeros(x.shape[0], 1, D), x], 1),
    "one hot": lambda m, x, i: F.one_hot(i, 3).float() @ torch.ones(3, 2),
    "lookup": lambda m, x, i: m.table[i],
    "own softmax": lambda m, x, i: x.softmax(-1).topk(2, -1).values,
    "repeat": lambda m, x, i: x.repeat_interleave(2, 0).reshape(x.shape[0], -1),
    "einsum": lambda m, x, i: torch.einsum("btd,bsd->bts", x, x),
    "cast": lambda m, x, i: (i.to(torch.float64).mean(-1, keepdim=True) + x[:, 0].double()).float(),
    "squeeze": lambda m, x, i: x[:, :1].squeeze(),
    "chunk and stack": lambda m, x, i: torch.stack(x.chunk(3, 1), 0).sum(0),
    "variance in row": lambda m, x, i: (x - x.mean((1, 2), True)) / torch.var_mean(x, (1, 2), keepdim=True)[0].sqrt(),
    "folded length": lambda m, x, i: m.layer(x.view(-1, D)) [: x.shape[0] * T].view(x.shape[0], T, 5),
    "where": lambda m, x, i: torch.where((i > 0)[..., None], x, torch.zeros_like(x)),
    "scatter": lambda m, x, i: torch.zeros(x.shape[0], 4).scatter(1, i, 1.0),
    "constant branch": lambda m, x, i: torch.cond(m.table.sum() > 0, lambda a: a * 2, lambda a: a * 3, (x,)),
    "causal": lambda m, x, i: (x @ x.transpose(1, 2)).tril().masked_fill(torch.ones(T, T).triu(1).bool(), -9.0),
}  # fmt: skip


def _written(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 1] = 0.5
    y[:, :, 2:4] = x[:, :, :2] * 2
    y[:, 0, 0] += 1.0
    return y


@pytest.mark.parametrize("name", KEEPS)
def test_row_wise_models_split_and_prove(name: str) -> None:
    torch.manual_seed(3)
    split_model = split(Outer(KEEPS[name]).eval(), example(), user=["x", "ids"], item=["item"])
    proof = prove_split(split_model)
    # The same kernels on other batch sizes reorder sums of a few dozen FP32 terms of order 1.
    assert proof.max_rel <= 1e-6
    assert proof.row_max_abs <= 1e-6
    assert proof.rows == 2 * (1 + 2 + 257)
    assert split_model.state

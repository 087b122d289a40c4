"""FLOPs of a traced graph, against torch's counter and by hand; a shared weight's bytes count once."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from graphs.base.cost import flops, gemm_flops, side_cost
from graphs.trace.trace import TRACE_ROWS, trace

T, D = 3, 8


class Work(nn.Module):
    def __init__(self, work: Callable[["Work", Tensor], Tensor]) -> None:
        super().__init__()
        self.work = work
        self.layer = nn.Linear(D, 5)
        self.tokens = nn.Parameter(torch.randn(T, D, 6))
        self.conv = nn.Conv1d(T, 4, 3)
        self.gru = nn.GRU(D, 7, batch_first=True)
        self.lstm = nn.LSTM(D, 7, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.work(self, x)


PRODUCTS: dict[str, Callable[[Work, Tensor], Tensor]] = {
    "linear": lambda m, x: m.layer(x),
    "twice": lambda m, x: m.layer(m.layer(x) @ m.layer.weight),
    "per feature token": lambda m, x: (x.transpose(0, 1) @ m.tokens).transpose(0, 1),
    "gram": lambda m, x: x @ x.mT,
    "attention": lambda m, x: F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None]),
    "convolution": lambda m, x: m.conv(x),
    "folded": lambda m, x: m.layer(x.view(-1, D)).view(-1, T, 5),
    "einsum": lambda m, x: torch.einsum("ntd,tdm->ntm", x, m.tokens),
    "tensordot": lambda m, x: torch.tensordot(x, m.tokens[0], dims=([2], [0])),
    "gru": lambda m, x: m.gru(x)[0],
    "lstm": lambda m, x: m.lstm(x)[0],
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_against_torchs_counter(name: str) -> None:
    torch.manual_seed(0)
    model = Work(PRODUCTS[name]).eval()
    x = torch.randn(TRACE_ROWS, T, D)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    traced = trace(model, {"x": x})
    counted = sum(gemm_flops(n) for n in traced.module.graph.nodes)
    # torch does not count the CPU's fused attention (scores, values) and LSTM (4 gates, 2 directions).
    fused = {"attention": 2 * 2 * T * T * D, "lstm": 2 * T * 2 * 4 * 7 * (D + 7)}
    expected = TRACE_ROWS * fused[name] if name in fused else counter.get_total_flops()
    assert expected > 0
    assert counted * TRACE_ROWS == expected


def test_element_wise_work_counts_and_moving_data_does_not() -> None:
    traced = trace(
        Work(lambda m, x: (x.relu() + 1.0).transpose(1, 2).reshape(-1, T * D).sum(-1)), (torch.randn(4, T, D),)
    )
    by_op = {str(n.target): flops(n) for n in traced.module.graph.nodes if n.op == "call_function"}
    assert by_op["aten.relu.default"] == by_op["aten.add.Tensor"] == T * D
    moves = [n for n in by_op if any(m in n for m in ("transpose", "reshape", "view", "clone", "sym_size"))]
    assert moves
    assert all(by_op[m] == 0 for m in moves)


def test_bytes_count_a_weight_once_and_tables_apart() -> None:
    class Lookup(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(10, D)
            self.layer = nn.Linear(D, D, bias=False)

        def forward(self, ids: Tensor) -> Tensor:
            return self.layer(self.layer(self.table(ids)))

    traced = trace(Lookup(), {"ids": torch.randint(0, 10, (4,))})
    cost = side_cost(traced.module.graph.nodes)
    assert cost.weight_bytes == 4 * D * D
    assert cost.table_bytes == 4 * 10 * D
    assert cost.gemm_flops == 2 * 2 * D * D

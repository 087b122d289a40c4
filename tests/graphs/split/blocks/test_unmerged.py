"""Rows and positions as one axis: the encoder layers of torch.nn, and networks on x.view(-1, D)."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.graphs.split.blocks.sequence_models import HISTORY, IDS, ITEMS, TOTAL, WIDTH, made, sequence_example
from tests.suites import slow_but

LATER = torch.ones(TOTAL, TOTAL, dtype=torch.bool).triu(1)


class Encoder(nn.Module):
    def __init__(self, norm_first: bool, call: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.ids, self.head, self.call = nn.Embedding(IDS, WIDTH), nn.Linear(WIDTH, 1), call
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, batch_first=True, norm_first=norm_first) for _ in range(2)
        )

    def forward(self, history: Tensor, item: Tensor) -> Tensor:
        x = self.ids(torch.cat([history, item], 1))
        padding = torch.cat([history == 0, torch.zeros_like(item, dtype=torch.bool)], 1)
        for layer in self.layers:
            x = self.call(layer, x, padding)
        return self.head(x[:, -1]).squeeze(-1)


def square() -> Tensor:
    return nn.Transformer.generate_square_subsequent_mask(TOTAL).double()


def weights_too(layer: nn.Module, x: Tensor, padding: Tensor) -> Tensor:
    assert isinstance(layer, nn.TransformerEncoderLayer)
    mixed, _ = layer.self_attn(x, x, x, attn_mask=LATER, need_weights=True)
    return layer.norm1(x + mixed)


CALLS: dict[str, Callable[[nn.Module, Tensor, Tensor], Tensor]] = {
    "causal": lambda layer, x, padding: layer(x, src_mask=square(), is_causal=True),
    "booleans": lambda layer, x, padding: layer(x, src_mask=LATER),
    "padded": lambda layer, x, padding: layer(x, src_mask=LATER, src_key_padding_mask=padding),
    "numbers, padded": lambda layer, x, padding: layer(
        x, src_mask=square(), src_key_padding_mask=torch.zeros_like(padding, dtype=x.dtype).masked_fill(padding, -1e9)
    ),
    "with its weights": weights_too,
}  # fmt: skip


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("name", slow_but({"causal", "numbers, padded"}, CALLS))
def test_encoder_layers(name: str, norm_first: bool) -> None:
    torch.manual_seed(0)
    found = made(Encoder(norm_first, CALLS[name]), sequence_example(), ["history"]).split
    assert found.item_cost.gemm_flops <= found.full_cost.gemm_flops * ITEMS / TOTAL + 2 * WIDTH  # and the head
    assert found.unmasked == ()


class Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ids, self.norm = nn.Embedding(IDS, WIDTH), nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(3 * WIDTH, WIDTH)

    def forward(self, history: Tensor, item: Tensor) -> Tensor:
        x = self.ids(torch.cat([history, item], 1))
        y = x.view(-1, WIDTH)
        y = y + self.down(F.gelu(self.up(self.norm(y)))) * 0.5
        return (y.view(x.shape) * torch.linspace(-1, 1, TOTAL, dtype=x.dtype)[:, None]).flatten(1).sum(-1)


def test_networks_on_rows_and_positions() -> None:
    torch.manual_seed(0)
    found = made(Flat(), sequence_example(), ["history"]).split
    assert found.item_cost.gemm_flops == found.full_cost.gemm_flops * ITEMS // TOTAL
    assert HISTORY + ITEMS == TOTAL

"""Of the last layer, only the position that is scored is computed."""

import torch

from tests.graphs.split.blocks.sequence_models import APART, ITEMS, TOTAL, WIDTH, Sequence, made, sequence_example


def test_one_position_of_the_last_layer() -> None:
    torch.manual_seed(0)
    found = made(Sequence(APART["is_causal"], layers=1), sequence_example(), ["history"]).split
    # Of the item's positions: the joint product of all (keys and values), everything after it of the last.
    joint = ITEMS * 2 * WIDTH * 4 * WIDTH
    attention = 2 * 2 * TOTAL * WIDTH
    after = 2 * WIDTH * WIDTH * (1 + 2 + 2 + 2)
    assert found.item_cost.gemm_flops == joint + attention + after + 2 * WIDTH

"""Random networks of supported ops: the subgraphs equal the whole, whatever is on which side."""

import collections

import pytest
import torch

from graphs.base.errors import UgsepError
from tests.graphs.split.random_networks import case, checked

FAST, MANY = 10, 3000


def outcomes(seeds: range) -> collections.Counter[str]:
    """Check every seed; a wrong or crashing one fails."""
    torch.set_num_threads(1)
    found: collections.Counter[str] = collections.Counter()
    for seed in seeds:
        try:
            found["hoisted" if checked(seed)[1].hoisted else "split"] += 1
        except UgsepError as error:
            if "nothing" not in str(error):
                raise AssertionError(f"seed {seed}: {error}") from error
            found["nothing"] += 1
    return found


def test_the_subgraphs_equal_the_whole() -> None:
    found = outcomes(range(FAST))
    assert found["hoisted"] >= FAST // 10
    assert found["nothing"] <= FAST // 4


def test_a_seed_gives_the_same_network() -> None:
    first, second = case(7), case(7)
    assert (first.user, first.item, first.network.ops) == (second.user, second.item, second.network.ops)
    with torch.no_grad():
        scores = [c.network(c.example)["score"] for c in (first, second)]
    assert torch.equal(*scores)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_thousands() -> None:
    found = outcomes(range(FAST, FAST + MANY))
    assert found["nothing"] <= MANY // 4

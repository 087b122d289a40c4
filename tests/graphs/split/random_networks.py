"""Random small networks of supported ops, each given by a seed: ``python -m tests.graphs.split.random_networks``.

A network has two to four inputs of random sides, and a few ops on its values: vectors [B, WIDTH] and sequences
[B, T, WIDTH]. Every op keeps values near 1 and is continuous in them, so that roundings stay roundings.
"""

from __future__ import annotations

import collections
import math
import random
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import click
import torch
from torch import Tensor, nn

from graphs.base.errors import GateFailed, UgsepError
from graphs.split.proof import prove_split
from graphs.split.split import Split, split
from tests.graphs.split.random_ops import LONGEST, POOLS, SEQUENCES, VECTORS, WIDTH

IDS = 12

# A few tens of ops of sums of at most 100 terms in double precision, 1e-16 * 1e2 * 3e1, of which layer norms of
# almost equal values (variance against eps = 1e-5) multiply errors by at most 300 each; two of these in a row.
EXACT = 1e-8


class Network(nn.Module):
    """The network of a seed; its layers are made by the first call, its choices are the same in every call."""

    def __init__(self, seed: int, steps: int) -> None:
        super().__init__()
        self.seed, self.steps = seed, steps
        self.layers = nn.ModuleList()
        self.weights = nn.ParameterList()
        self.ops: list[str] = []

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        self.pick = random.Random(self.seed)
        self.layer_at = self.weight_at = 0
        self.ops = []
        self.vectors: list[Tensor] = []
        self.sequences: list[Tensor] = []
        self.masks: dict[int, list[Tensor]] = collections.defaultdict(list)
        for name, value in inputs.items():
            self.read(name, value)
        for _ in range(self.steps):
            self.step()
        outputs = {"score": self.score()}
        if self.pick.random() < 0.3 and self.vectors:
            outputs["vector"] = self.vectors[-1]
        return outputs

    def read(self, name: str, value: Tensor) -> None:
        """Take an input: ids are looked up."""
        if value.is_floating_point():
            (self.sequences if value.dim() == 3 else self.vectors).append(value)
            return
        found = self.layer(lambda: nn.Embedding(IDS, WIDTH))(value)
        if value.dim() == 1:
            self.vectors.append(found)
            return
        self.sequences.append(found)
        self.masks[value.shape[1]].append(value != 0)

    def layer(self, make: Callable[[], nn.Module]) -> nn.Module:
        """Return the next layer, made if this is the first call."""
        if self.layer_at == len(self.layers):
            made = make().double().eval()
            for parameter in made.parameters():
                nn.init.normal_(parameter, 0.1, 0.4)
            self.layers.append(made)
        self.layer_at += 1
        return self.layers[self.layer_at - 1]

    def weight(self, *shape: int) -> Tensor:
        if self.weight_at == len(self.weights):
            self.weights.append(nn.Parameter(torch.randn(*shape, dtype=torch.float64) * 0.5))
        self.weight_at += 1
        return self.weights[self.weight_at - 1]

    def linear(self, x: Tensor, out: int = WIDTH) -> Tensor:
        wide, bias = x.shape[-1], self.pick.random() < 0.7
        return self.layer(lambda: nn.Linear(wide, out, bias))(x) / math.sqrt(wide)

    def vector(self) -> Tensor:
        if not self.vectors:
            self.vectors.append(self.sequence().mean(1))
        return self.pick.choice(self.vectors)

    def sequence(self) -> Tensor:
        if not self.sequences:
            some = [self.vector() for _ in range(self.pick.randint(2, 4))]
            self.sequences.append(torch.stack(some, 1))
        return self.pick.choice(self.sequences[-4:])

    def step(self) -> None:
        kinds = [("sequence", SEQUENCES), ("sequence", SEQUENCES), ("vector", VECTORS), ("pool", POOLS)]
        kind, table = self.pick.choice(kinds)
        name = self.pick.choice(sorted(table))
        self.ops.append(name)
        if kind == "vector":
            self.vectors.append(table[name](self, self.vector()))
        elif kind == "pool":
            self.vectors.append(table[name](self, self.sequence()))
        else:
            made = table[name](self, self.sequence())
            assert made.shape[1] <= LONGEST
            self.sequences.append(made)

    def score(self) -> Tensor:
        pools = sorted(POOLS)
        last = [*self.vectors[-2:], *(POOLS[self.pick.choice(pools)](self, s) for s in self.sequences[-2:])]
        joined = torch.cat([*last, self.vectors[0] if self.vectors else self.sequence()[:, 0]], -1)
        return self.linear(torch.tanh(self.linear(joined, 16)), 1).squeeze(-1)


@dataclass(frozen=True)
class Case:
    """A network, example rows, and the sides of its inputs."""

    network: Network
    example: dict[str, Tensor]
    user: list[str]
    item: list[str]


def case(seed: int) -> Case:
    """Return the network of a seed, with its layers."""
    pick = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    example: dict[str, Tensor] = {}
    for index in range(pick.randint(2, 4)):
        kind, length = pick.choice(["ids", "ids", "id", "vector", "sequence"]), pick.randint(1, 5)
        if kind == "ids":
            example[f"ids{index}"] = torch.randint(0, IDS, (5, length), generator=generator)
        elif kind == "id":
            example[f"id{index}"] = torch.randint(0, IDS, (5,), generator=generator)
        else:
            shape = (5, WIDTH) if kind == "vector" else (5, length, WIDTH)
            example[f"{kind}{index}"] = torch.randn(shape, generator=generator, dtype=torch.float64)
    names = list(example)
    pick.shuffle(names)
    users = pick.randint(1, len(names) - 1)
    torch.manual_seed(seed)
    network = Network(seed, pick.randint(2, 9)).eval()
    with torch.no_grad():
        network(example)
    return Case(network, example, sorted(names[:users]), sorted(names[users:]))


def checked(seed: int) -> tuple[Case, Split]:
    """Split the network of a seed, and compare 1 to 5 candidates of 1 and 3 users with the whole."""
    found = case(seed)
    result = split(found.network, {"inputs": found.example}, user=found.user, item=found.item)
    prove_split(result, tolerance=EXACT, candidates=(1 + seed % 5,), users=(1, 3), seed=seed)
    return found, result


@click.command()
@click.option("--first", default=0, help="First seed.")
@click.option("--cases", default=3000, help="How many seeds.")
def main(first: int, cases: int) -> None:
    """Split many random networks; print what was wrong or refused, and how many."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    counts: collections.Counter[str] = collections.Counter()
    for seed in range(first, first + cases):
        ops = case(seed).network.ops
        try:
            _, result = checked(seed)
            outcome = "hoisted" if result.hoisted else "split"
        except GateFailed as error:
            outcome = "wrong"
            click.echo(f"{seed} WRONG {error} {ops}")
        except UgsepError as error:
            nothing = "nothing" in str(error)
            outcome = "nothing to reuse" if nothing else "refused"
            if not nothing:
                click.echo(f"{seed} refused {error} {ops}")
        except Exception:
            outcome = "crashed"
            click.echo(f"{seed} CRASHED {ops}\n{traceback.format_exc(limit=-4)}")
        counts[outcome] += 1
        if (seed - first) % 50 == 49:
            click.echo(f"{seed - first + 1}: {dict(counts)}")
    click.echo(str(dict(counts)))


if __name__ == "__main__":
    main()

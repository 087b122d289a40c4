"""Who takes part in a benchmark: baselines that run the whole model, and our pairs of engines.

Another process loads contenders to measure their memory, so this file must not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from engines.backends.contract import Array, BuiltEngine
from engines.backends.table import find_backend
from engines.bench.baselines.contract import BaselineSource, Run
from engines.bench.baselines.table import BASELINES
from engines.bench.costs import BITS, weight_bits
from engines.serve.ranker import Ranker
from quant.requests.readers import Request

#: What one timed call does: the whole model for N rows; a request with its user computed or found in the cache;
#: one engine alone.
Variant = Literal["whole", "cold", "cached", "user", "item"]
Loaded = Callable[[Request], Mapping[Variant, Run]]


@dataclass(frozen=True)
class Contender:
    """One way to score a request.

    ``precision`` is what its scores are held to, ``detail`` how it is configured. ``load(threads)`` gives a function
    from a request to the calls that are timed; it can be sent to another process. ``weight_bits`` by side is the
    width in which weights are read in every call.
    """

    name: str
    ours: bool
    precision: str
    detail: str
    load: Callable[[int], Loaded]
    weight_bits: Mapping[str, int]
    chosen: bool = False


@dataclass(frozen=True)
class Pair:
    """Two of our engines, and the directories that hold their files."""

    user: BuiltEngine
    user_directory: Path
    item: BuiltEngine
    item_directory: Path

    @property
    def name(self) -> str:
        """Backend and precision of both sides, once where they are the same."""
        return pair_name((self.user.backend, self.user.precision), (self.item.backend, self.item.precision))


def pair_name(user: tuple[str, str], item: tuple[str, str]) -> str:
    """Return (backend, precision) of the user and of the item side in words; what both share is said once."""
    first = f"{user[0]} {user[1]}"
    if user == item:
        return first
    return f"{first} + {item[1] if user[0] == item[0] else f'{item[0]} {item[1]}'}"


def baseline_contenders(names: Sequence[str], source: BaselineSource) -> list[Contender]:
    """Return baselines by name; nothing is loaded yet."""
    found = []
    for name in names:
        baseline = BASELINES[name]
        bits = BITS[baseline.precision]
        load = partial(_load_baseline, name, source)
        found.append(Contender(name, False, baseline.precision, baseline.detail, load, {"user": bits, "item": bits}))
    return found


def _load_baseline(name: str, source: BaselineSource, threads: int) -> Loaded:
    bind = BASELINES[name].load(source, threads)

    def loaded(request: Request) -> Mapping[Variant, Run]:
        # Repeating the user's row is not part of the time: a server may keep its rows in any form.
        users = {k: np.repeat(v, request.candidates, axis=0) for k, v in request.user.items()}
        return {"whole": bind({**users, **request.items})}

    return loaded


def our_contender(pair: Pair, *, chosen: bool = False, sides_alone: bool = False) -> Contender:
    """Return a pair of engines behind a Ranker; ``sides_alone`` also times each engine by itself."""
    precision = min((pair.user.precision, pair.item.precision), key=lambda p: BITS[p])
    bits = {"user": weight_bits(pair.user), "item": weight_bits(pair.item)}
    detail = "engines of the bundle" if chosen else "built for this run"
    load = partial(_load_pair, pair, chosen or sides_alone)
    return Contender(f"ugsep {pair.name}", True, precision, detail, load, bits, chosen)


def _load_pair(pair: Pair, sides_alone: bool, threads: int) -> Loaded:
    runners = [
        find_backend(built.backend).load(directory, built, threads)
        for built, directory in ((pair.user, pair.user_directory), (pair.item, pair.item_directory))
    ]
    ranker = Ranker(runners[0], runners[1], pair.user, pair.item)

    def loaded(request: Request) -> Mapping[Variant, Run]:
        def cold() -> dict[str, Array]:
            ranker.forget_users()
            return ranker.score(request.user, request.items)

        calls: dict[Variant, Run] = {"cold": cold, "cached": lambda: ranker.score(request.user, request.items)}
        if sides_alone:
            feeds: dict[str, Array] = {
                **request.items,
                **ranker.user_state(request.user),
                **ranker.one_user_index(request.candidates),
            }
            calls["user"] = lambda: ranker.user_runner.infer(request.user)
            calls["item"] = lambda: ranker.item_runner.infer(feeds)
        return calls

    return loaded

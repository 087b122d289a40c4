"""The contenders of a benchmark: baselines that run the whole model, and our pairs of engines.

Our pairs are the bundle's and further ones built for the run. A fresh process loads contenders to measure their
memory, so importing this file must load neither torch nor build dependencies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from engines.backends.built_engine import BuiltEngine
from engines.backends.contract import Array
from engines.backends.table import find_backend
from engines.bench.baselines import BASELINES
from engines.bench.baselines.contract import BaselineSource, Run
from engines.bench.costs import BITS, weight_bits
from engines.bundle.manifest import Engine, Manifest, engine_for
from engines.recipes.recipe import Recipe
from engines.serve.ranker import Ranker
from graphs.base.errors import UgsepError
from graphs.base.progress import Progress, ProgressCallback, silent
from quant.requests.spec import Request

if TYPE_CHECKING:
    from graphs.base.names import GraphSide

#: What one timed call does: score N rows with the whole model; score a request with its user computed or cached;
#: run one engine alone.
Variant = Literal["whole", "cold", "cached", "user", "item"]
Loaded = Callable[[Request], Mapping[Variant, Run]]

#: What a side runs: backend and precision.
Kind = tuple[str, str]

_FP32: Kind = ("onnxruntime", "fp32")
#: Pairs of (user, item) kinds built in addition to the bundle's. ``--backend auto`` chooses each side separately, so
#: it can pick the mixed ones.
EXTRA_PAIRS: tuple[tuple[Kind, Kind], ...] = (
    (_FP32, _FP32),
    (("onnxruntime", "w8a8-dynamic"), ("onnxruntime", "w8a8-dynamic")),
    (("onnxruntime", "w8a8-static"), ("onnxruntime", "w8a8-static")),
    (("openvino", "fp32"), ("openvino", "fp32")),
    (("openvino", "bf16"), ("openvino", "bf16")),
    (("openvino", "w8a8-dynamic"), ("openvino", "w8a8-dynamic")),
    (("onnxruntime", "w8a8-dynamic"), ("openvino", "bf16")),
)


@dataclass(frozen=True, eq=False)  # compared by identity, so that it can be a dictionary key
class Contender:
    """One way to score a request.

    ``precision`` is what its scores are checked at, ``detail`` its configuration. ``load(threads)``, which can be
    pickled, is a context that yields a function from a request to the calls to time, and releases what it loaded.
    ``weight_bits`` is the width at which each side reads weights. ``item_graph`` is the lowered FP32 graph of the
    item engine if its GEMMs are timed alone too.
    """

    name: str
    ours: bool
    precision: str
    detail: str
    load: Callable[[int], AbstractContextManager[Loaded]]
    weight_bits: Mapping[str, int]
    chosen: bool = False
    item_graph: Path | None = None

    @property
    def must_hold(self) -> bool:
        """Whether wrong scores end the benchmark.

        They do for a pair of ours, unless it was built for this run with scales calibrated on other requests, which
        random ones may saturate.
        """
        return self.ours and (self.chosen or self.precision != "w8a8-static")


@dataclass(frozen=True)
class Pair:
    """A user and an item engine of ours, and their directories."""

    user: BuiltEngine
    user_directory: Path
    item: BuiltEngine
    item_directory: Path

    @property
    def name(self) -> str:
        """Backend and precision of both sides; what they share appears once."""
        return pair_name(*self.kinds)

    @property
    def kinds(self) -> tuple[Kind, Kind]:
        """What each side runs."""
        return (self.user.backend, self.user.precision), (self.item.backend, self.item.precision)

    @property
    def is_plain(self) -> bool:
        """Whether this is the split without quantization, in ONNX Runtime."""
        return self.kinds == (_FP32, _FP32)


def pair_name(user: Kind, item: Kind) -> str:
    """Return the name of a pair of engines; what both sides share appears once."""
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


@contextmanager
def _load_baseline(name: str, source: BaselineSource, threads: int) -> Iterator[Loaded]:
    bind = BASELINES[name].load(source, threads)

    def loaded(request: Request) -> Mapping[Variant, Run]:
        # Repeating the user's row is not timed: a server may store its rows in any form.
        users = {k: np.repeat(v, request.candidates, axis=0) for k, v in request.user.items()}
        return {"whole": bind({**users, **request.items})}

    yield loaded


def our_contender(pair: Pair, *, chosen: bool = False, ceiling: bool = False) -> Contender:
    """Return a pair of engines behind a Ranker.

    The engines of the bundle's choice (``chosen``), and those compared with their GEMMs (``ceiling``), are also timed
    alone.
    """
    precision = min((pair.user.precision, pair.item.precision), key=lambda p: BITS[p])
    bits = {"user": weight_bits(pair.user), "item": weight_bits(pair.item)}
    detail = "engines of the bundle" if chosen else "built for this run"
    load = partial(_load_pair, pair, chosen or ceiling)
    graph = pair.item_directory / "item.onnx" if ceiling else None
    return Contender(f"ugsep {pair.name}", True, precision, detail, load, bits, chosen, graph)


@contextmanager
def _load_pair(pair: Pair, sides_alone: bool, threads: int) -> Iterator[Loaded]:
    with ExitStack() as open_runners:
        user, item = (
            open_runners.enter_context(closing(find_backend(built.backend).load(directory, built, threads)))
            for built, directory in ((pair.user, pair.user_directory), (pair.item, pair.item_directory))
        )
        yield partial(_calls, Ranker(user, item, pair.user, pair.item), sides_alone)


def _calls(ranker: Ranker, sides_alone: bool, request: Request) -> Mapping[Variant, Run]:
    """Return the calls of a pair to time on a request."""

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


def bundle_pairs(bundle: Path, manifest: Manifest) -> tuple[list[Pair], dict[str, str]]:
    """Return the bundle's pairs that can run on this machine, the chosen one first, and the reason for each other.

    Raises:
        UgsepError: the chosen engines cannot run on this machine.
    """
    chosen = _pair(bundle, engine_for(manifest, "user"), engine_for(manifest, "item"))
    pairs, left_out = [chosen], {}
    for name in dict.fromkeys(e.built.backend for e in manifest.engines):
        here = find_backend(name).probe()
        if not here.can_run:
            if name in (chosen.user.backend, chosen.item.backend):
                raise UgsepError(
                    f"{bundle}: its engines cannot run on this machine ({here.reason}); rebuild: {manifest.rebuild}"
                )
            left_out[f"ugsep {name}"] = here.reason
            continue
        sides = {e.built.side: e for e in reversed(manifest.engines) if e.built.backend == name}
        if "user" in sides and "item" in sides:
            pairs.append(_pair(bundle, sides["user"], sides["item"]))
    return list({pair.name: pair for pair in reversed(pairs)}.values())[::-1], left_out


def _pair(bundle: Path, user: Engine, item: Engine) -> Pair:
    return Pair(user.built, bundle / user.directory, item.built, bundle / item.directory)


def extra_pairs(
    recipe: Recipe,
    onnx: Path,
    folder: Path,
    taken: Sequence[str],
    which: Sequence[tuple[Kind, Kind]] = EXTRA_PAIRS,
    progress: ProgressCallback = silent,
) -> tuple[list[Pair], dict[str, str]]:
    """Build further pairs from the graphs in ``onnx``; return them, and why others cannot be built.

    Pairs whose name is in ``taken`` are skipped.

    Raises:
        UgsepError: the plain split (the FP32 pair in ONNX Runtime) cannot be built, so there is no reference.
    """
    from engines.compile.compile import EnginePlan, compile_engine  # slow, and not needed to measure memory

    pairs: list[Pair] = []
    left_out: dict[str, str] = {}
    engines: dict[Path, BuiltEngine] = {}

    def engine(side: GraphSide, kind: Kind) -> tuple[BuiltEngine, Path]:
        built = folder / f"{side}.{kind[0]}.{kind[1]}"
        if built not in engines:
            built.mkdir(parents=True, exist_ok=True)
            engines[built] = compile_engine(recipe, EnginePlan(side, *kind), onnx / f"{side}.onnx", built)
        return engines[built], built

    for user, item in which:
        name = pair_name(user, item)
        if name in taken:
            continue
        progress(Progress("build pairs", len(pairs), None, name))
        try:
            pairs.append(Pair(*engine("user", user), *engine("item", item)))
        except UgsepError as error:
            if user == item == _FP32:
                raise
            left_out[f"ugsep {name}"] = str(error)
    return pairs, left_out

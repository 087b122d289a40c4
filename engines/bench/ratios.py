"""Speed-up over the share of user tokens, measured on small random RankMixers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from engines.bench.baselines.contract import BaselineSource, ModelWeights
from engines.bench.contender import baseline_contenders, extra_pairs, our_contender
from engines.bench.costs import costs_of_split
from engines.bench.peak import MachinePeak
from engines.bench.run import Settings, measure
from engines.build.graph_exports import export_graphs
from engines.build.source_model import of_model, split_source_model
from engines.build.sources import Sources, load_model
from engines.recipes.recipe import Recipe, Serving
from graphs.base.errors import UgsepError
from graphs.base.features import Feature, of_side, random_rows
from graphs.base.names import GraphSide
from graphs.base.progress import Progress, ProgressCallback, silent
from graphs.models.ranking_model import RankingModel
from quant.requests.spec import Request
from quant.schemes.schemes import Absmax
from quant.weights import quantize_side

#: User and item tokens: 16 or 18 in total, whichever gives the ratio in whole tokens.
RATIOS = ((6, 12), (8, 8), (12, 6), (12, 4), (15, 3))
#: The multiple of 16 and 18 nearest to 256; mixing needs a width divisible by the number of tokens.
WIDTH = 288
_KINDS = (
    ("onnxruntime", "fp32"),
    ("onnxruntime", "w8a8-dynamic"),
    ("openvino", "fp32"),
    ("openvino", "bf16"),
)
PAIRS = tuple((kind, kind) for kind in _KINDS)
_SAME_ENGINE = "onnxruntime-lowered"


@dataclass(frozen=True)
class RatioPoint:
    """One user:item ratio. Times are p50 in milliseconds, for a request with its user computed.

    ``whole_ms`` and ``split_ms`` use the same engine (ONNX Runtime FP32, lowered), so that only the split differs;
    ``baseline`` and ``best`` are the fastest whole model and the fastest of our pairs.
    """

    user_tokens: int
    item_tokens: int
    candidates: int
    threads: int
    limit: float
    whole_ms: float
    split_ms: float
    baseline: str
    baseline_ms: float
    best: str
    best_ms: float

    @property
    def speedup(self) -> float:
        """Whole over split in the same engine, which ``limit`` bounds."""
        return self.whole_ms / self.split_ms

    @property
    def best_speedup(self) -> float:
        """Fastest whole model over the fastest of our pairs."""
        return self.baseline_ms / self.best_ms


def ratio_recipe(user_tokens: int, item_tokens: int, candidates: int, width: int = WIDTH) -> Recipe:
    """Return the RankMixer of one ratio: two layers, inner width 4 D, enough vectors for the tokens of each side."""
    features = [
        *(Feature(f"user_{i}", "user", "id", vocab=1000) for i in range(18)),
        Feature("profile", "user", "dense", width=18),
        *(Feature(f"item_{i}", "item", "id", vocab=1000) for i in range(18)),
        Feature("cross", "item", "dense", width=18),
    ]
    config = {
        "features": [
            {"name": f.name, "side": f.side, "kind": f.kind, "vocab": f.vocab, "width": f.width} for f in features
        ],
        "width": width,
        "layers": 2,
        "user_tokens": user_tokens,
        "item_tokens": item_tokens,
        "hidden": 4 * width,
    }
    return Recipe("rankmixer", config, serving=Serving(candidates=(candidates,), max_candidates=candidates))


def measure_ratios(
    baselines: Sequence[str],
    settings: Settings,
    folder: Path,
    peak: MachinePeak,
    ratios: Sequence[tuple[int, int]] = RATIOS,
    width: int = WIDTH,
    progress: ProgressCallback = silent,
) -> list[RatioPoint]:
    """Time every ratio at the largest size up to 256 and at the first thread count of ``settings``.

    Raises:
        UgsepError: ONNX Runtime is missing.
    """
    candidates = max((n for n in settings.candidates if n <= 256), default=min(settings.candidates))
    once = Settings((candidates,), settings.threads[:1], settings.rounds, memory=False)
    points = []
    for done, (user_tokens, item_tokens) in enumerate(ratios):
        progress(Progress("ratios", done, len(ratios), f"user:item {user_tokens}:{item_tokens}"))
        recipe = ratio_recipe(user_tokens, item_tokens, candidates, width)
        work = folder / f"{user_tokens}-{item_tokens}"
        points.append(_point(recipe, baselines, once, work, peak))
    progress(Progress("ratios", len(ratios), len(ratios)))
    return points


def _point(recipe: Recipe, baselines: Sequence[str], settings: Settings, work: Path, peak: MachinePeak) -> RatioPoint:
    torch.set_num_threads(1)
    model = load_model(recipe, Sources(None))
    source_model = of_model(model)
    split_model = split_source_model(source_model)
    graphs = export_graphs("ratio", source_model, split_model, work / "onnx")
    source = BaselineSource(graphs["full"], work, recipe, ModelWeights())
    sides: tuple[GraphSide, ...] = ("user", "item")
    for side in sides:
        quantize_side(graphs[side], work / "onnx", scheme=Absmax())
    pairs, _ = extra_pairs(recipe, work / "onnx", work / "pairs", (), PAIRS)
    ours = [our_contender(pair) for pair in pairs]
    plain = next(c.name for c, pair in zip(ours, pairs, strict=True) if pair.is_plain)
    contenders = [*baseline_contenders(tuple(dict.fromkeys((_SAME_ENGINE, *baselines))), source), *ours]
    costs = costs_of_split(split_model)
    request = _request(model, settings.candidates[0])
    found = measure(contenders, source, request, costs, settings, peak=lambda _: peak)
    whole = {t.name: t.ms.p50 for t in found.timings if t.variant == "whole"}
    if _SAME_ENGINE not in whole:
        raise UgsepError(f"{_SAME_ENGINE}: {found.left_out.get(_SAME_ENGINE)}; the ratios need it as their baseline")
    cold = {t.name: t.ms.p50 for t in found.timings if t.variant == "cold"}
    baseline, best = min(whole, key=lambda n: whole[n]), min(cold, key=lambda n: cold[n])
    config = model.config
    return RatioPoint(
        config.user_tokens, config.item_tokens, settings.candidates[0], settings.threads[0],
        costs.limit(settings.candidates[0]), whole[_SAME_ENGINE], cold[plain],
        baseline, whole[baseline], best, cold[best],
    )  # fmt: skip


def _request(model: RankingModel, candidates: int) -> Request:
    generator = torch.Generator().manual_seed(1)
    user = random_rows(of_side(model.config.features, "user"), 1, generator)
    items = random_rows(of_side(model.config.features, "item"), candidates, generator)
    return Request(
        0, {k: np.asarray(v.numpy()) for k, v in user.items()}, {k: np.asarray(v.numpy()) for k, v in items.items()}
    )

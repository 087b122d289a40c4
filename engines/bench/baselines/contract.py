"""The contract of a baseline: a function that loads the whole model and returns a function that binds its inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engines.backends.contract import Array
from engines.recipes.recipe import Recipe
from graphs.base.errors import UgsepError

if TYPE_CHECKING:  # only the PyTorch baselines import torch
    from graphs.models.ranking_model import RankingModel

#: Score the bound inputs; logits [N] by task.
Run = Callable[[], dict[str, Array]]
#: Bind the whole model's inputs (N rows, the user's row repeated) and return the call to time.
Bind = Callable[[Mapping[str, Array]], Run]


@dataclass(frozen=True)
class ModelWeights:
    """The source of PyTorch weights: a checkpoint folder, or a seed (and a features.json) for random ones."""

    checkpoint: Path | None = None
    features: Path | None = None
    seed: int = 0


@dataclass(frozen=True)
class BaselineSource:
    """The inputs of a baseline.

    ``onnx`` is the exported FP32 graph of the whole model, ``folder`` a scratch folder shared between processes,
    ``model`` the source of the PyTorch weights, if any.
    """

    onnx: Path
    folder: Path
    recipe: Recipe
    model: ModelWeights | None = None

    def pytorch_model(self) -> RankingModel:
        """Load the PyTorch model in eval mode.

        Raises:
            UgsepError: no source of weights, or see ``engines.build.sources.load_model``.
        """
        if self.model is None:
            raise UgsepError("needs the PyTorch model; pass --checkpoint DIR, or --random for a random build")
        from engines.build.sources import Sources, load_model

        sources = Sources(self.model.checkpoint, features=self.model.features, seed=self.model.seed)
        return load_model(self.recipe, sources)


@dataclass(frozen=True)
class Baseline:
    """One baseline: the precision its scores are checked at, its configuration, and the function that loads it.

    ``load(source, threads)`` raises UgsepError if this machine cannot run the baseline.
    """

    precision: str
    detail: str
    load: Callable[[BaselineSource, int], Bind]

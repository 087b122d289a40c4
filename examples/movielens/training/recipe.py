"""The settings of a checkpoint: model and training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from graphs.base import config as config_file
from graphs.base.errors import UgsepError
from graphs.base.features import Feature
from graphs.models.ranking_model import ModelConfig, RankingModel

FROM_DATA = ("features", "tasks")


@dataclass(frozen=True)
class Training:
    """Training settings.

    ``batch_rows``: most rows per step; ``warmup``: share of all steps; ``patience``: epochs; ``clip``: bound on the
    gradient norm; ``forget``: share of requests per epoch whose id is hidden.

    Raises:
        UgsepError: a count below 1, a non-positive rate, a share outside [0, 1).
    """

    seed: int = 0
    threads: int = 2
    epochs: int = 3
    patience: int = 1
    batch_rows: int = 512
    lr: float = 5e-4
    embedding_lr: float = 5e-4
    decay: float = 0.02
    embedding_decay: float = 0.02
    warmup: float = 0.1
    clip: float = 1.0
    forget: dict[str, float] = field(default_factory=lambda: {"user_id": 0.7, "item_id": 0.1})

    def __post_init__(self) -> None:
        for name in ("threads", "epochs", "patience", "batch_rows"):
            if getattr(self, name) < 1:
                raise UgsepError(f"training.{name} is {getattr(self, name)}; must be an integer >= 1")
        for name in ("lr", "embedding_lr", "clip"):
            if not getattr(self, name) > 0:
                raise UgsepError(f"training.{name} is {getattr(self, name)}; must be > 0")
        shares = {"warmup": self.warmup, **{f"forget.{k}": v for k, v in self.forget.items()}}
        for name, share in shares.items():
            if not 0 <= share < 1:
                raise UgsepError(f"training.{name} is {share}; must be in [0, 1)")


@dataclass(frozen=True)
class Recipe:
    """``model``: settings of the architecture's config class, without features and tasks; ``training``."""

    model: dict[str, Any] = field(default_factory=dict)
    training: Training = field(default_factory=Training)


def model_config(
    cls: type[RankingModel], recipe: Recipe, features: tuple[Feature, ...], tasks: tuple[str, ...]
) -> ModelConfig:
    """Return the architecture's config for the data's features and tasks.

    Raises:
        UgsepError: an unknown or invalid setting, features or tasks set by hand, an unknown id to forget.
    """
    for name in FROM_DATA:
        if name in recipe.model:
            raise UgsepError(f"model.{name} comes from the data; leave it out of the recipe")
    ids = [f.name for f in features if f.kind == "id"]
    for name in recipe.training.forget:
        if name not in ids:
            raise UgsepError(f"training.forget names '{name}'; the data's id features are {', '.join(ids)}")
    values = {**recipe.model, "features": features, "tasks": tasks}
    return config_file.parse(cls.config_class, values, "model")

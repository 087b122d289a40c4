"""Where a build's model and requests come from, and the content key that says whether anything changed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.bundle.files import hash_file
from engines.bundle.provenance import BUNDLE_CODE, code_sha256, tool_versions
from engines.recipes.recipe import Recipe, dump_recipe
from graphs.base import config
from graphs.base.errors import UgsepError
from graphs.checkpoint.files import weight_files
from graphs.models.pretrained import load_checkpoint, read_config
from graphs.models.ranking_model import ModelConfig, RankingModel, initialise
from graphs.models.table import model_class
from quant.requests.readers import request_files


@dataclass(frozen=True)
class Sources:
    """What a build reads: a checkpoint folder, or None for random weights; request files, or () for synthetic ones.

    ``features`` is a features.json for random builds of recipes that declare none. ``factory``, in place of a
    checkpoint, is ``path/to/file.py:function`` that makes any module, with its inputs named by side.
    """

    checkpoint: Path | None
    calibration: tuple[Path, ...] = ()
    requests: tuple[Path, ...] = ()
    features: Path | None = None
    seed: int = 0
    factory: str = ""
    user: tuple[str, ...] = ()
    item: tuple[str, ...] = ()

    @property
    def synthetic(self) -> bool:
        """Whether weights or samples are random."""
        made_up = self.checkpoint is None and not self.factory
        return made_up or not self.calibration or not self.requests


def load_model(recipe: Recipe, sources: Sources) -> RankingModel:
    """Return the model in eval mode: the checkpoint's, or random weights from the recipe's config.

    Raises:
        UgsepError: a bad checkpoint or config, or a checkpoint of another architecture than the recipe's.
    """
    if sources.checkpoint is not None:
        check_architecture(recipe, sources.checkpoint)
        return load_checkpoint(sources.checkpoint)
    model = model_class(recipe.model)(random_config(recipe, sources.features))
    initialise(model, sources.seed)
    return model.eval()


def check_architecture(recipe: Recipe, folder: Path) -> None:
    """Refuse a checkpoint of another architecture than the recipe's.

    Raises:
        UgsepError: it is of another, or not a checkpoint.
    """
    found = read_config(folder).get("architecture")
    if found != recipe.model:
        raise UgsepError(f"{folder} holds a '{found}', the recipe is for '{recipe.model}'; pass the other")


def random_config(recipe: Recipe, features: Path | None) -> ModelConfig:
    """Return the config of a random build; features come from the recipe, else from a features.json.

    Raises:
        UgsepError: neither gives features, or a wrong setting.
    """
    settings: dict[str, Any] = dict(recipe.config)
    if "features" not in settings:
        if features is None or not features.is_file():
            raise UgsepError(
                f"recipe for '{recipe.model}' declares no features; run 'make data' or pass --features FILE"
            )
        document = json.loads(features.read_text())
        settings["features"] = document["features"]
        settings.setdefault("tasks", document["tasks"])
    return config.parse(model_class(recipe.model).config_class, settings, f"recipe '{recipe.model}' config")


def content_key(name: str, recipe: Recipe, sources: Sources, backend: str, module_sha256: str = "") -> str:
    """Return the sha256 of everything that shapes a bundle: recipe, weights, requests, tools, this tool's own code.

    Contents count, not paths or times. ``module_sha256`` stands for the module a factory made.

    Raises:
        UgsepError: a missing checkpoint or request file.
    """
    parts: dict[str, Any] = {
        "name": name,
        "recipe": dump_recipe(recipe),
        "backend": backend,
        "tools": tool_versions(),
        "code": code_sha256(BUNDLE_CODE),
        "seed": sources.seed,
    }
    if sources.checkpoint is not None:
        read_config(sources.checkpoint)
        files = [sources.checkpoint / "config.json", *weight_files(sources.checkpoint)]
        parts["checkpoint"] = [hash_file(file).sha256 for file in files]
    if sources.factory:
        parts["factory"] = [module_sha256, sources.user, sources.item]
    if sources.features is not None and sources.features.is_file():
        parts["features"] = hash_file(sources.features).sha256
    for role in ("calibration", "requests"):
        paths: tuple[Path, ...] = getattr(sources, role)
        parts[role] = [hash_file(p).sha256 for p in request_files(paths)] if paths else []
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

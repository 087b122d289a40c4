"""The sources of a build (weights and requests), and the content key that detects changes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from engines.bundle.files import hash_file
from engines.bundle.provenance import BUNDLE_CODE, code_sha256, tool_versions
from engines.recipes.recipe import Recipe, dump_recipe
from graphs.base import config
from graphs.base.errors import UgsepError
from graphs.base.features import Feature
from graphs.base.json_text import read_json
from graphs.base.regular_file import is_regular_file
from graphs.checkpoint.files import weight_files
from graphs.models.pretrained import load_checkpoint, read_config
from graphs.models.ranking_model import ModelConfig, RankingModel, initialise
from graphs.models.table import model_class
from graphs.trace.jagged.options import JaggedOptions
from quant.requests.readers import request_files


@dataclass(frozen=True)
class _FeaturesFile:
    """The content of a features.json."""

    features: tuple[Feature, ...]
    tasks: tuple[str, ...]


@dataclass(frozen=True)
class Sources:
    """What a build reads: a checkpoint folder, or None for random weights; request files, or () for synthetic ones.

    ``features`` is a features.json for random builds of recipes without features. ``factory`` replaces the checkpoint
    by ``path/to/file.py:function``, which returns any module; ``user`` and ``item`` then name its inputs by side, and
    ``jagged`` declares its jagged features.
    """

    checkpoint: Path | None
    calibration: tuple[Path, ...] = ()
    requests: tuple[Path, ...] = ()
    features: Path | None = None
    seed: int = 0
    factory: str = ""
    user: tuple[str, ...] = ()
    item: tuple[str, ...] = ()
    jagged: JaggedOptions = field(default_factory=JaggedOptions)

    @property
    def synthetic(self) -> bool:
        """Whether weights or requests are random."""
        made_up = self.checkpoint is None and not self.factory
        return made_up or not self.calibration or not self.requests


def load_model(recipe: Recipe, sources: Sources) -> RankingModel:
    """Return the model in eval mode, from the checkpoint or with random weights for the recipe's config.

    Raises:
        UgsepError: a bad checkpoint or config, or a checkpoint of a different architecture than the recipe.
    """
    if sources.checkpoint is not None:
        check_architecture(recipe, sources.checkpoint)
        return load_checkpoint(sources.checkpoint)
    model = model_class(recipe.model)(random_config(recipe, sources.features))
    initialise(model, sources.seed)
    return model.eval()


def check_architecture(recipe: Recipe, folder: Path) -> None:
    """Check that a checkpoint has the architecture of the recipe.

    Raises:
        UgsepError: the architecture differs, or the folder is not a checkpoint.
    """
    found = read_config(folder).get("architecture")
    if found != recipe.model:
        raise UgsepError(f"{folder} holds a '{found}', but the recipe is for '{recipe.model}'; change one of them")


def random_config(recipe: Recipe, features: Path | None) -> ModelConfig:
    """Return the config of a random build, with features from the recipe or else from a features.json.

    Raises:
        UgsepError: neither declares features, the file is missing or malformed, or a setting is invalid.
    """
    settings: dict[str, Any] = dict(recipe.config)
    if "features" not in settings:
        if features is None:
            raise UgsepError(
                f"recipe for '{recipe.model}' declares no features; run 'make data' or pass --features FILE"
            )
        declared = _read_features(features)
        settings = {"tasks": declared["tasks"], **settings, "features": declared["features"]}
    return config.parse(model_class(recipe.model).config_class, settings, f"recipe '{recipe.model}' config")


def _read_features(path: Path) -> dict[str, Any]:
    if not is_regular_file(path, "pass the features.json of 'make data' with --features"):
        raise UgsepError(f"'{path}' does not exist; pass the features.json of 'make data' with --features")
    location = f"'{path}'"
    document = read_json(path.read_bytes(), location, "run 'make data' again")
    config.check_plain(document, location)
    return config.to_mapping(config.parse(_FeaturesFile, document, location))


def content_key(name: str, recipe: Recipe, sources: Sources, backend: str, module_sha256: str = "") -> str:
    """Return the sha256 of everything that determines a bundle: recipe, weights, requests, tools and our own code.

    Files are hashed by content, not by path or time. ``module_sha256`` identifies the module of a factory.

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
        parts["factory"] = [module_sha256, sources.user, sources.item, asdict(sources.jagged)]
    if sources.features is not None and is_regular_file(sources.features, "pass a features.json with --features"):
        parts["features"] = hash_file(sources.features).sha256
    for role in ("calibration", "requests"):
        paths: tuple[Path, ...] = getattr(sources, role)
        parts[role] = [hash_file(p).sha256 for p in request_files(paths)] if paths else []
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

"""Load a checkpoint as the model named in its config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from graphs.base.errors import UgsepError
from graphs.base.json_text import read_json
from graphs.base.json_words import named_type
from graphs.base.regular_file import is_regular_file
from graphs.checkpoint.files import PICKLES, check_weights, stored_weights, weight_files
from graphs.models.ranking_model import RankingModel
from graphs.models.table import model_class


def load_checkpoint(directory: Path) -> RankingModel:
    """Return the model of a checkpoint folder, in eval mode.

    Raises:
        UgsepError: a missing or truncated file or shard, a pickle, an unknown architecture, a missing or unknown
            weight, a wrong shape, or a NaN or infinite value.
    """
    return _class_of(directory, read_config(directory)).from_pretrained(directory)


def meta_model(directory: Path) -> RankingModel:
    """Return the model of a checkpoint folder on the meta device, in eval mode: names and shapes, no values.

    Raises:
        UgsepError: as ``load_checkpoint``, except that values are not checked.
    """
    config = read_config(directory)
    kind = _class_of(directory, config)
    with torch.device("meta"):
        model = kind(kind.config_from(config))
    check_weights(model.state_dict(), stored_weights(directory), weight_files(directory)[0])
    return model.eval()


def _class_of(directory: Path, config: dict[str, Any]) -> type[RankingModel]:
    name = config.get("architecture")
    if not isinstance(name, str):
        raise UgsepError(f"{directory / 'config.json'}: no 'architecture'; save the model with save_pretrained")
    return model_class(name)


def read_config(directory: Path) -> dict[str, Any]:
    """Return ``config.json`` of a checkpoint folder as a mapping; raises as ``load_checkpoint``."""
    if directory.is_file() and directory.suffix in PICKLES:
        raise UgsepError(f"{directory} is a pickle, which can run code when loaded; convert it to safetensors")
    path = directory / "config.json"
    if not is_regular_file(path, "save the checkpoint again"):
        hint = "train one with 'make checkpoint', or write a random one with 'ugsep random-checkpoint'"
        raise UgsepError(f"no checkpoint at {directory}: {path.name} is missing; {hint}")
    config = read_json(path.read_bytes(), str(path), "save the checkpoint again")
    if not isinstance(config, dict):
        raise UgsepError(f"{path} contains {named_type(type(config))}, not a mapping; save the checkpoint again")
    return config

"""Checkpoints: a folder with ``config.json`` and ``model.safetensors``; pickles are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from graphs.errors import UgsepError, nearest
from graphs.ranking_model import RankingModel
from graphs.registry import model_class

PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")


def load_checkpoint(directory: Path) -> RankingModel:
    """Return the model a checkpoint folder holds, in eval mode.

    Raises:
        UgsepError: missing or truncated file, a pickle, unknown architecture, missing or surplus weight,
            wrong shape, NaN or infinite weight.
    """
    config = read_config(directory)
    name = config.get("architecture")
    if not isinstance(name, str):
        raise UgsepError(f"{directory / 'config.json'}: no 'architecture'; save the model with save_pretrained")
    return model_class(name).from_pretrained(directory)


def read_config(directory: Path) -> dict[str, Any]:
    """Return ``config.json`` of a checkpoint folder as a mapping; the errors of ``load_checkpoint``."""
    if directory.is_file() and directory.suffix in PICKLES:
        raise UgsepError(f"{directory} is a pickle, which can run code when loaded; convert it to safetensors")
    path = directory / "config.json"
    if not path.is_file():
        hint = "train one with 'make checkpoint' or pass INIT=random"
        raise UgsepError(f"no checkpoint at {directory}: {path.name} is missing; {hint}")
    try:
        config = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UgsepError(f"{path} is not JSON ({error}); save the checkpoint again") from error
    if not isinstance(config, dict):
        raise UgsepError(f"{path} holds a {type(config).__name__}, not a mapping; save the checkpoint again")
    return config


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill every parameter and buffer of ``model`` from one safetensors file; the errors of ``load_checkpoint``."""
    if not path.is_file():
        pickles = [p.name for p in sorted(path.parent.glob("*")) if p.suffix in PICKLES]
        found = f" (found {pickles[0]}: pickles are refused, convert it to safetensors)" if pickles else ""
        raise UgsepError(f"no weights at {path}{found}; a checkpoint is config.json and model.safetensors")
    try:
        weights = safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise UgsepError(f"{path} is truncated or not safetensors ({error}); save the checkpoint again") from error
    expected = model.state_dict()
    for name in expected:
        if name not in weights:
            raise UgsepError(
                f"{path}: weight '{name}' is missing{nearest(name, weights)}; is config.json of this model?"
            )
    for name, value in weights.items():
        if name not in expected:
            raise UgsepError(
                f"{path}: unknown weight '{name}'{nearest(name, expected)}; is config.json of this model?"
            )
        if value.shape != expected[name].shape:
            got, want = tuple(value.shape), tuple(expected[name].shape)
            raise UgsepError(
                f"{path}: weight '{name}' has shape {got}, config.json asks for {want}; use the matching pair"
            )
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            bad = int((~torch.isfinite(value)).sum())
            raise UgsepError(
                f"{path}: weight '{name}' has {bad} NaN or infinite values; retrain or repair the checkpoint"
            )
    model.load_state_dict(weights)


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the parameters and buffers of ``model`` to one safetensors file."""
    safetensors.torch.save_file({k: v.detach().contiguous() for k, v in model.state_dict().items()}, path)

"""Read and write the weights of a module as safetensors."""

from __future__ import annotations

from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import nn

from graphs.checkpoint.files import check_finite, check_weights, stored_weights, weight_files


def load_weights(model: nn.Module, folder: Path) -> None:
    """Fill every parameter and buffer of ``model`` from a checkpoint folder, converting to the model's dtypes.

    Raises:
        UgsepError: as ``load_checkpoint``.
    """
    stored, expected = stored_weights(folder), model.state_dict()
    check_weights(expected, stored, weight_files(folder)[0])
    for file in sorted({s.file for s in stored.values()}):
        with safetensors.safe_open(file, framework="pt") as opened, torch.no_grad():
            for name in opened.keys():
                value = opened.get_tensor(name)
                check_finite(name, value, file)
                expected[name].copy_(value)
                check_finite(name, expected[name], file)  # float64 beyond the range of float32


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the parameters and buffers of ``model`` to one safetensors file."""
    safetensors.torch.save_file({k: v.detach().contiguous() for k, v in model.state_dict().items()}, path)

"""A random checkpoint of any size, written shard by shard, to test models that do not fit in memory."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from pathlib import Path

import huggingface_hub
import safetensors.torch
import torch
from torch import Tensor

from engines.build.sources import random_config
from engines.recipes.recipe import Recipe
from graphs.base import config
from graphs.base.errors import UgsepError
from graphs.base.progress import Progress, ProgressCallback, silent
from graphs.checkpoint.files import INDEX
from graphs.models.table import model_class

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def write_random_checkpoint(
    recipe: Recipe,
    out: Path,
    *,
    dtype: str = "bf16",
    shard_bytes: int = 1_000_000_000,
    seed: int = 0,
    features: Path | None = None,
    progress: ProgressCallback = silent,
) -> tuple[Path, ...]:
    """Write config.json, shards and their index to ``out``, one shard in memory at a time; return the shards.

    Each weight is drawn from a generator seeded with ``seed`` and its name, so output is reproducible: matrices are
    uniform with the initial variance of nn.Linear, norm gains one, biases small.

    Raises:
        UgsepError: ``out`` already holds a checkpoint or cannot be written, or the recipe declares no features.
    """
    kind = model_class(recipe.model)
    settings = random_config(recipe, features)
    if any(out.glob("*.safetensors*")):
        raise UgsepError(f"{out} already holds a checkpoint; remove it or choose another directory")
    with torch.device("meta"):
        model = kind(settings)
    wanted = {
        name: value.to(DTYPES[dtype]) if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }
    plan = huggingface_hub.split_torch_state_dict_into_shards(wanted, max_shard_size=shard_bytes)
    try:
        out.mkdir(parents=True, exist_ok=True)
        shards = sorted(plan.filename_to_tensors)
        for done, shard in enumerate(shards):
            progress(Progress("random checkpoint", done, len(shards), shard))
            tensors = {n: _draw(n, wanted[n], seed) for n in plan.filename_to_tensors[shard]}
            partial = out / f".{shard}.partial"
            safetensors.torch.save_file(tensors, partial)
            os.replace(partial, out / shard)
        mapping = {"architecture": kind.architecture(), **config.to_mapping(settings)}
        (out / "config.json").write_text(json.dumps(mapping, indent=2, sort_keys=True) + "\n")
        for shard in shards:
            shutil.copymode(out / "config.json", out / shard)  # the library writes 0600, whatever the umask
        if plan.is_sharded:
            index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
            (out / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    except (OSError, safetensors.SafetensorError) as error:
        raise UgsepError(f"cannot write to '{out}' ({error}); free space or choose another directory") from error
    progress(Progress("random checkpoint", len(shards), len(shards)))
    return tuple(out / shard for shard in shards)


def _draw(name: str, like: Tensor, seed: int) -> Tensor:
    if not like.is_floating_point():
        return torch.zeros(like.shape, dtype=like.dtype)
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    value = torch.empty(like.shape, dtype=like.dtype)
    if name.endswith("bias"):
        return value.uniform_(-0.01, 0.01, generator=generator)
    if like.dim() < 2:
        return value.fill_(1.0)
    bound = 1 / math.sqrt(like.shape[1])
    return value.uniform_(-bound, bound, generator=generator)

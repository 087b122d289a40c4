"""The memory of a model's parameters, checked before the first of them is allocated."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch

from graphs.base.errors import UgsepError

if TYPE_CHECKING:
    from graphs.models.ranking_model import ModelConfig

__all__ = ["check_parameters", "parameters_of"]

#: 4 TB in FP32: more than any bundle on one disk, and far from the overflow of sizes in bytes.
MAX_PARAMETERS = 2**40


def parameters_of(config: ModelConfig) -> tuple[int, int]:
    """Return the number of parameters in embedding tables, and of all others, by formula."""
    rows: dict[str, int] = {}
    for f in config.features:
        if f.kind != "dense":
            rows[f.table_name] = max(rows.get(f.table_name, 0), f.vocab)
    return sum(rows.values()) * config.table_width, config.counts().parameters


def check_parameters(config: ModelConfig) -> None:
    """Refuse a config whose parameters exceed any machine or, unless they are made on the meta device, this one.

    Raises:
        UgsepError: the message has the sizes, and which part is the largest.
    """
    tables, dense = parameters_of(config)
    total = tables + dense
    sizes = (
        f"the config describes {total:.3g} parameters, {4 * total / 1e9:.1f} GB in FP32 "
        f"({4 * tables / 1e9:.1f} GB of embedding tables)"
    )
    if total > MAX_PARAMETERS:
        raise UgsepError(f"{sizes}, which is out of range (max {MAX_PARAMETERS}); correct its sizes")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if 4 * total > memory and torch.empty(0).device.type != "meta":
        raise UgsepError(
            f"{sizes}, but this machine has {memory / 1e9:.1f} GB; correct its sizes, or use 'ugsep stream', which "
            "reads weights from disk"
        )

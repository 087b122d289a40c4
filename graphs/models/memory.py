"""The memory of a model's parameters, checked before the first of them is allocated."""

from __future__ import annotations

import os

import torch

from graphs.base.errors import UgsepError

__all__ = ["check_parameters"]

#: 4 TB in FP32: more than any bundle on one disk, and far from the overflow of sizes in bytes.
MAX_PARAMETERS = 2**40


def check_parameters(tables: int, dense: int) -> None:
    """Refuse more parameters than any machine holds or, unless they are made on the meta device, this one.

    Args:
        tables: parameters of the embedding tables.
        dense: all others.

    Raises:
        UgsepError: the message has the sizes, and which part is the largest.
    """
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

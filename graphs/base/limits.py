"""Ranges of the sizes and names of a model, checked when its config is made."""

from __future__ import annotations

import re

from torch import nn

from graphs.base.errors import UgsepError

__all__ = ["MAX_LAYERS", "MAX_SIZE", "MAX_TOKENS", "check_module_name", "check_name", "check_range"]

MAX_SIZE = 2**20  # of a width, in elements; a matrix of two such sizes has 4 TB
MAX_VOCAB = 2**31 - 1  # runtimes hold sizes as int32
MAX_TOKENS = 4096
MAX_LAYERS = 1024
_MAX_NAME = 128
_NAME = re.compile(r"\w[\w-]*")  # a name becomes a graph's input, a column and a JSON key
_TAKEN = frozenset(dir(nn.ModuleDict()))  # names that PyTorch refuses for the modules of a ModuleDict


def check_range(least: float, most: float, config: object, *names: str) -> None:
    """Reject settings outside [least, most], and NaN.

    Raises:
        UgsepError: names the field and its value.
    """
    for name in names:
        value = getattr(config, name)
        if not value >= least:
            raise UgsepError(f"{name} is {value}; it must be at least {least}")
        if not value <= most:
            raise UgsepError(f"{name} is {value}; it must be at most {most}")


def check_name(name: str, what: str) -> None:
    """Reject names that are not letters, digits, ``_`` and ``-``, of any script.

    Raises:
        UgsepError: the message begins with ``what``.
    """
    if not _NAME.fullmatch(name) or len(name) > _MAX_NAME:
        raise UgsepError(
            f"{what} {name!a:.60} is not a valid name; use up to {_MAX_NAME} letters, digits, '_' and '-'"
        )


def check_module_name(name: str, what: str, fix: str) -> None:
    """Reject names that no module of a model can have; ``fix`` ends the error if the name is taken.

    Raises:
        UgsepError: the message begins with ``what``.
    """
    check_name(name, what)
    if name in _TAKEN:
        raise UgsepError(f"{what} '{name}' is a name that PyTorch uses itself; {fix}")

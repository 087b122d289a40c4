"""Find an architecture by name: ``graphs/models/tokenmixer_large.py`` is ``tokenmixer-large``."""

from __future__ import annotations

import importlib
import pkgutil

import graphs.models
from graphs.errors import UgsepError, nearest
from graphs.ranking_model import RankingModel


def architectures() -> tuple[str, ...]:
    """Return the names of all architectures, sorted."""
    found = pkgutil.iter_modules(graphs.models.__path__)
    return tuple(sorted(m.name.replace("_", "-") for m in found))


def model_class(name: str) -> type[RankingModel]:
    """Return the model class of an architecture.

    Raises:
        UgsepError: no such architecture (the nearest name is given).
    """
    if name not in architectures():
        raise UgsepError(f"unknown model '{name}'{nearest(name, architectures())}")
    module = importlib.import_module(f"graphs.models.{name.replace('-', '_')}")
    cls: type[RankingModel] = module.MODEL
    return cls

"""The architectures by name; a new one takes a file and a row here."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from graphs.base.errors import UgsepError, nearest
from graphs.models.ranking_model import RankingModel

__all__ = ["architectures", "model_class"]

#: Modules that define ``MODEL``, imported on use.
MODELS: Mapping[str, str] = {
    "hstu": "graphs.models.hstu",
    "onetrans": "graphs.models.onetrans",
    "rankmixer": "graphs.models.rankmixer",
    "tokenmixer-large": "graphs.models.tokenmixer_large",
    "unimixer": "graphs.models.unimixer",
    "zenith": "graphs.models.zenith",
    "zenith-pp": "graphs.models.zenith_pp",
}


def architectures() -> tuple[str, ...]:
    """Return the names of all architectures, sorted."""
    return tuple(sorted(MODELS))


def model_class(name: str) -> type[RankingModel]:
    """Return the model class of an architecture.

    Raises:
        UgsepError: no such architecture (with the nearest name).
    """
    if name not in MODELS:
        raise UgsepError(f"unknown model '{name}'{nearest(name, architectures())}")
    cls: type[RankingModel] = importlib.import_module(MODELS[name]).MODEL
    return cls

"""All models by the package that has them; a package is imported when one of its models is made."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping

import torch

from benchmarks.model_zoo.packages import deepctr, fuxictr, recbole, rechub, torchrec, transformers
from benchmarks.model_zoo.packages.inputs import Models, ZooModel
from graphs.base.errors import UgsepError, nearest

#: By the name of the package on the index.
PACKAGES: Mapping[str, Models] = {
    "deepctr-torch": deepctr.MODELS,
    "torch-rechub": rechub.MODELS,
    "recbole": recbole.MODELS,
    "fuxictr": fuxictr.MODELS,
    "torchrec": torchrec.MODELS,
    "transformers": transformers.MODELS,
}


def names() -> dict[str, tuple[str, str]]:
    """Return the package and the model's name there, by a name that is an identifier."""
    return {identifier(p, m): (p, m) for p, models in PACKAGES.items() for m in models}


def identifier(package: str, model: str) -> str:
    """Return a model's name as an identifier: ``recbole_din``."""
    return re.sub(r"\W+", "_", f"{package} {model}").strip("_").lower()


def make(name: str) -> ZooModel:
    """Make a model by its identifier, from a fixed seed, without the warnings of its package.

    Raises:
        UgsepError: no such model.
    """
    known = names()
    if name not in known:
        raise UgsepError(f"no model '{name}'{nearest(name, known)}; python -m benchmarks.model_zoo list shows all")
    package, model = known[name]
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PACKAGES[package][model]()

"""Submodules of TorchRec, found by type and replaced in a copy of the model that shares its parameters."""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Callable
from typing import Any

from torch import nn

from graphs.base.errors import UgsepError
from graphs.trace.jagged.lookups import Collection, PaddedBags, PaddedEmbeddings, Regrouped

Outside = dict[str, dict[str, str]]  # by path of a collection, the inputs that hold its results


def is_keyed_jagged(value: object) -> bool:
    """Return whether a value is TorchRec's KeyedJaggedTensor, without importing TorchRec."""
    return any(
        t.__name__ == "KeyedJaggedTensor" and t.__module__.startswith("torchrec.") for t in type(value).__mro__
    )


def with_padded_parts(module: nn.Module, outside: Outside | None) -> nn.Module:
    """Return a copy of a module that shares its parameters and looks up padded features.

    Raises:
        UgsepError: a collection that is not a plain one of float tables, such as a sharded or quantized one.
    """
    modules = importlib.import_module("torchrec.modules.embedding_modules")
    regroup = getattr(sys.modules.get("torchrec.modules.regroup"), "KTRegroupAsDict", None)
    pooled, sequences = modules.EmbeddingBagCollectionInterface, modules.EmbeddingCollectionInterface

    def padded(part: nn.Module, path: str) -> nn.Module | None:
        named = None if outside is None else outside.get(path, {})
        if type(part) is modules.EmbeddingBagCollection:
            return PaddedBags(path, part, named)
        if type(part) is modules.EmbeddingCollection:
            return PaddedEmbeddings(path, part, named)
        if isinstance(part, (pooled, sequences)):
            raise UgsepError(
                f"submodule '{path}' is a {type(part).__name__} of {type(part).__module__}; pass the model as it was "
                "before sharding and quantization, with EmbeddingBagCollections and EmbeddingCollections"
            )
        if regroup is not None and type(part) is regroup:
            known: Any = part
            return Regrouped(known._groups, known._keys)
        return None

    return _replaced(module, "", padded, {})


def collections_of(module: nn.Module) -> dict[str, Collection]:
    """Return the stand-ins for collections, by path."""
    return {name: part for name, part in module.named_modules() if isinstance(part, Collection)}


def _replaced(
    module: nn.Module, path: str, new: Callable[[nn.Module, str], nn.Module | None], done: dict[int, nn.Module]
) -> nn.Module:
    """Return a module with parts replaced; parts that have none among their own stay the same objects."""
    if id(module) in done:
        return done[id(module)]
    made = new(module, path)
    if made is None:
        children = {name: part for name, part in module._modules.items() if part is not None}
        parts = {name: _replaced(part, f"{path}.{name}".lstrip("."), new, done) for name, part in children.items()}
        made = module
        if any(part is not children[name] for name, part in parts.items()):
            made = copy.copy(module)
            made._modules = {**module._modules, **parts}
    done[id(module)] = made
    return made

"""Calls of a model with padded features: once to see what it reads, and as a module of plain tensors."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from graphs.base.errors import UgsepError
from graphs.trace.call import Call
from graphs.trace.jagged.assembled import assembling
from graphs.trace.jagged.layout import KeyedLayout
from graphs.trace.jagged.lookups import Collection
from graphs.trace.jagged.pieces import Pieces
from graphs.trace.jagged.stand_ins import PaddedRows


@dataclass(frozen=True)
class Found:
    """What a collection found: by name of a lookup, the embeddings; ``bases`` has the inputs of its features.

    The base of a feature that the model makes is empty.
    """

    vectors: Mapping[str, Tensor]
    bases: Mapping[str, str]


class Recorded(Mapping[str, Tensor]):
    """Tensors by name; ``read`` has the names of those that were read."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        self.read.add(name)
        return self.tensors[name]

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


@dataclass(frozen=True)
class PaddedCall:
    """How a model is called: its arguments, of which some are features in ``layouts``.

    ``parts`` has the arguments that are the values, lengths and the like, by ``kind``, of another one's features: of
    a KeyedJaggedTensor that the model makes of them.
    """

    call: Call
    layouts: Mapping[str, KeyedLayout]
    parts: Mapping[str, tuple[str, str]]

    def arguments(
        self, inputs: Mapping[str, Tensor], vectors: Mapping[str, Tensor]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of the model, with stand-ins for its features."""
        keyed = {name: layout.stand_in(inputs, vectors) for name, layout in self.layouts.items()}

        def argument(name: str) -> Any:
            if name in self.parts:
                whole, kind = self.parts[name]
                return Pieces(kind, list(keyed[whole].features.values()))
            return keyed[name] if name in keyed else inputs[name]

        return self.call.with_tensors([argument(name) for name in self.call.names])

    def jagged_arguments(
        self, keyed: Mapping[str, Any], others: Mapping[str, Tensor]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of the model as it was, of KeyedJaggedTensors and other inputs."""

        def argument(name: str) -> Any:
            if name in self.parts:
                whole, kind = self.parts[name]
                return getattr(keyed[whole], kind)()
            return keyed[name] if name in keyed else others[name]

        return self.call.with_tensors([argument(name) for name in self.call.names])

    def looked_up(self, module: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Any, dict[str, Found]]:
        """Call a module that looks up inside; return its result and, by path, what every collection found.

        Raises:
            UgsepError: a collection is called twice.
        """
        found: dict[str, Found] = {}

        def note(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
            assert isinstance(part, Collection)
            if part.where in found:
                raise UgsepError(
                    f"submodule '{part.where}' is called twice, so its lookups have no one input; give each call a "
                    "collection of its own to look embeddings up outside"
                )
            tensors = result if isinstance(result, dict) else result.to_dict()
            vectors = {n: v.rows if isinstance(v, PaddedRows) else v for n, v in tensors.items()}
            keyed = part.features_of(args[0] if args else kwargs["features"])
            found[part.where] = Found(vectors, {name: rows.base for name, rows in keyed.features.items()})

        hooks = [
            p.register_forward_hook(note, with_kwargs=True) for p in module.modules() if isinstance(p, Collection)
        ]
        try:
            return self.run(module, inputs, {}), found
        finally:
            for hook in hooks:
                hook.remove()

    def run(self, module: nn.Module, inputs: Mapping[str, Tensor], vectors: Mapping[str, Tensor]) -> Any:
        """Call a module."""
        args, kwargs = self.arguments(inputs, vectors)
        # A compiled part would be compiled for minutes, to be called a few times.
        with torch.no_grad(), torch.compiler.set_stance("force_eager"), assembling():
            return module(*args, **kwargs)

    def flat(self, module: nn.Module, vectors: frozenset[str]) -> nn.Module:
        """Return a module that takes a dict of tensors; those in ``vectors`` are results of lookups.

        It shares parameters and submodules with ``module``, under the same names.
        """
        original, made = module.forward, copy.copy(module)

        def forward(inputs: dict[str, Tensor]) -> Any:
            ids = {n: t for n, t in inputs.items() if n not in vectors}
            args, kwargs = self.arguments(ids, {n: inputs[n] for n in vectors})
            with assembling():
                return original(*args, **kwargs)

        made.forward = forward
        return made

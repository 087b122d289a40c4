"""The model to build, in one form for built-in models and for PyTorch modules from a user's factory."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from engines.build.sources import Sources, load_model
from engines.recipes.recipe import Recipe
from graphs.base.errors import UgsepError
from graphs.base.features import of_side, random_rows
from graphs.base.names import USER_INDEX, GraphSide
from graphs.base.progress import Progress, ProgressCallback, silent
from graphs.explain.reuse import little_reuse
from graphs.models.ranking_model import RankingModel
from graphs.split.fresh_rows import fresh_rows
from graphs.split.proof import RowSource
from graphs.split.split import Split, split
from graphs.trace.factory import load_factory
from graphs.trace.jagged.flat import flat_model
from graphs.trace.trace import Example
from quant.requests.spec import Request

TRACE_ROWS = 7
#: Initializers of third-party modules that must stay float: norms and routers by name; heads are up to the policy.
KEEP_FLOAT = ("*norm*", "*router*")


@dataclass(frozen=True)
class SourceModel:
    """A module to split, with an example call, its inputs by side, and a source of random input rows."""

    module: nn.Module
    example: Example
    user: tuple[str, ...]
    item: tuple[str, ...]
    keep_float: tuple[str, ...]
    rows_like: RowSource


def of_model(model: RankingModel) -> SourceModel:
    """Return a built-in model, folded for inference, as a SourceModel; its features declare the sides."""
    features = model.config.features

    def rows(_: Mapping[str, Tensor], count: int, generator: torch.Generator) -> dict[str, Tensor]:
        return random_rows(features, count, generator)

    example = {"features": random_rows(features, TRACE_ROWS, torch.Generator().manual_seed(0))}
    user, item = (tuple(f.name for f in of_side(features, side)) for side in ("user", "item"))
    return SourceModel(model.for_inference(), example, user, item, model.keep_float, rows)


def of_module(module: nn.Module, example: Example, user: tuple[str, ...], item: tuple[str, ...]) -> SourceModel:
    """Return any module as a SourceModel; ``graphs.split.fresh_rows`` generates its rows."""
    return SourceModel(module, example, user, item, KEEP_FLOAT, fresh_rows)


def load_source_model(recipe: Recipe, sources: Sources) -> SourceModel:
    """Return the model of a build: a factory's module, a checkpoint, or a model with random weights.

    Raises:
        UgsepError: an invalid factory, checkpoint or recipe.
    """
    if sources.factory:
        flat = flat_model(*load_factory(sources.factory), sources.jagged)
        return of_module(flat.module, flat.example, flat.inputs_of(sources.user), flat.inputs_of(sources.item))
    return of_model(load_model(recipe, sources))


def module_sha256(module: nn.Module) -> str:
    """Return the sha256 of a module's structure, parameters and buffers."""
    digest = hashlib.sha256(repr(module).encode())
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def split_source_model(source_model: SourceModel, progress: ProgressCallback = silent) -> Split:
    """Split a SourceModel by the sides of its inputs; raises the errors of ``graphs.split.split``."""
    progress(Progress("split", 0, 1))
    split_model = split(source_model.module, source_model.example, user=source_model.user, item=source_model.item)
    saved = f"{split_model.reusable_share:.0%} of the FLOPs are saved per candidate"
    little = little_reuse(split_model)
    progress(Progress("split", 1, 1, f"warning: {little}" if little else saved))
    return split_model


def fresh_feeds(
    source_model: SourceModel, split_model: Split, users: int, candidates: int, seed: int
) -> dict[GraphSide, dict[str, Tensor]]:
    """Return random feeds for the full, user and item graph that describe the same request.

    Args:
        source_model: generates the rows.
        split_model: its split.
        users: rows of the user graph.
        candidates: rows of the item graph and the full graph.
        seed: seed for the rows and for the user of each candidate.
    """
    generator = torch.Generator().manual_seed(seed)
    example = dict(zip(split_model.traced.inputs, split_model.traced.example, strict=True))
    rows = source_model.rows_like(example, users, generator)
    items = source_model.rows_like(example, candidates, generator)
    index = torch.randint(0, users, (candidates,), generator=generator)
    everything = {n: rows[n][index] if n in source_model.user else items[n] for n in example}
    given = {**everything, **split_model.user({n: rows[n] for n in split_model.user.inputs}), USER_INDEX: index}
    return {
        "full": {n: everything[n] for n in split_model.full.inputs},
        "user": {n: rows[n] for n in split_model.user.inputs},
        "item": {n: given[n] for n in split_model.item.inputs},
    }


def random_requests(
    source_model: SourceModel, split_model: Split, requests: int, candidates: int, seed: int
) -> list[Request]:
    """Return random requests without labels, with the rows of ``source_model``; for trials, not for calibration.

    Requests that the model itself cannot score, such as a mean over an empty history, are left out.

    Raises:
        UgsepError: the model can score none.
    """
    generator = torch.Generator().manual_seed(seed)
    example = dict(zip(split_model.traced.inputs, split_model.traced.example, strict=True))
    engine_only = {*split_model.user.outputs, USER_INDEX}
    made = []
    for identity in range(requests):
        user = source_model.rows_like(example, 1, generator)
        item = source_model.rows_like(example, candidates, generator)
        scores = split_model.full({n: user[n].expand_as(v) if n in source_model.user else v for n, v in item.items()})
        if not all(bool(score.isfinite().all()) for score in scores.values()):
            continue
        made.append(
            Request(
                identity,
                {n: np.ascontiguousarray(user[n]) for n in split_model.user.inputs},
                {n: np.ascontiguousarray(item[n]) for n in split_model.item.inputs if n not in engine_only},
            )
        )
    if not made:
        raise UgsepError(
            f"the model gives a NaN or infinity for a row of each of {requests} random requests; pass --calibration "
            "and --requests with real ones, or mend the model, for example for users without a history"
        )
    return made

"""A padded model against the model as given, on random jagged features."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from graphs.base.errors import UgsepError
from graphs.trace.call import without_dataclasses
from graphs.trace.jagged.forwards import PaddedCall
from graphs.trace.jagged.lookups import Collection
from graphs.trace.jagged.pieces import Pieces
from graphs.trace.jagged.stand_ins import PaddedKeys, PaddedRows, PooledEmbeddings
from graphs.trace.trace_errors import readable
from graphs.trace.widen import LOW_PRECISION

_ROWS = 16
#: Sums of a bag in another order, and the layers after them: as for all graphs of a build in float32. TorchRec rounds
#: the sums of 16-bit tables to 11 bits or 8, which the padded model does not.
_FLOAT32, _SHORTER = 1e-5, 0.05
_CHANGED = (
    "padded features change the model's scores on random ids; read jagged features only through "
    "EmbeddingBagCollection, EmbeddingCollection and to_padded_dense(K), which ignore the padding"
)


def check_same_scores(module: nn.Module, padded: nn.Module, call: PaddedCall, example: Mapping[str, Any]) -> None:
    """Compare the scores of the model on random jagged features, in the number of ids too, and of the padded model.

    Other inputs are those of the ``example``, repeated.

    Raises:
        UgsepError: they differ, or the model fails.
    """
    tolerance = _SHORTER if any(p.dtype in LOW_PRECISION for p in module.parameters()) else _FLOAT32
    generator = torch.Generator().manual_seed(0)
    # Batches whose longest row is as long as declared, and shorter.
    for missing in (0, 1):
        keyed = {
            name: _random(example[name], _table_rows(padded), layout.max_lengths, missing, generator)
            for name, layout in call.layouts.items()
        }
        others = {
            name: value.index_select(0, torch.arange(_ROWS, device=value.device) % len(value))
            for name, value in example.items()
            if name not in keyed
        }
        inputs = {name: value.clone() for name, value in others.items()}  # a model may write into its inputs
        for name, layout in call.layouts.items():
            inputs |= layout.inputs(keyed[name])
        found = _scores("padded rows", partial(call.run, padded, inputs, {}))
        arguments = call.jagged_arguments(keyed, others)
        wanted = _scores("jagged features", partial(_called, module, *arguments))
        check_equal(wanted, found, _CHANGED, tolerance)


def _scores(features: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except UgsepError:
        raise
    except Exception as error:  # whatever the model raises
        raise UgsepError(
            f"the model fails on random {features}: {readable(error)}; declare features of one id per row with "
            "--single, and give to_padded_dense a length"
        ) from error


def _called(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        return module(*args, **kwargs)


def _table_rows(padded: nn.Module) -> dict[str, int]:
    """Return the rows of the smallest table of each feature."""
    rows: dict[str, int] = {}
    for part in padded.modules():
        for lookup in part.lookups if isinstance(part, Collection) else ():
            rows[lookup.feature] = min(lookup.rows, rows.get(lookup.feature, lookup.rows))
    return rows


def check_equal(wanted: Any, found: Any, message: str, tolerance: float = 0.0) -> None:
    """Compare the results of two calls, relative to max(1, largest).

    Raises:
        UgsepError: ``message``: they differ; or another error if a result is no tensor.
    """
    given, others = (pytree.tree_leaves(without_dataclasses(result)) for result in (wanted, found))
    if any(isinstance(other, (PaddedRows, PaddedKeys, Pieces, PooledEmbeddings)) for other in others):
        raise UgsepError("the model returns a jagged or keyed tensor; return tensors only")
    pairs = zip(given, others, strict=True)
    if not all(_close(one, other, tolerance) for one, other in pairs if isinstance(one, Tensor)):
        raise UgsepError(message)


def _close(one: Tensor, other: Tensor, tolerance: float) -> bool:
    if one.shape != other.shape:
        return False
    finite = one.double()[one.isfinite()]
    largest = float(finite.abs().max()) if finite.numel() else 0.0
    return torch.allclose(one.double(), other.double(), rtol=0, atol=tolerance * max(1.0, largest), equal_nan=True)


def _random(
    keyed: Any, rows: Mapping[str, int], max_lengths: Mapping[str, int], missing: int, generator: torch.Generator
) -> Any:
    """Return random features like ``keyed``, ids from whole tables: a row without ids, a full one, others between.

    A full row has ``missing`` ids less than declared.
    """
    values, lengths, weights = [], [], []
    for name, feature in keyed.to_dict().items():
        ids = feature.values()
        if name not in max_lengths:
            counts = torch.ones(_ROWS, dtype=torch.int64)
        else:
            most = max(1, max_lengths[name] - missing)
            counts = torch.randint(0, most + 1, (_ROWS,), generator=generator)
            counts[:2] = torch.tensor([0, most])
        below = rows.get(name, int(ids.max()) + 1 if len(ids) else 1)
        values.append(torch.randint(0, below, (int(counts.sum()),), generator=generator).to(ids))
        lengths.append(counts.to(feature.lengths()))
        weighted = feature.weights_or_none()
        if weighted is not None:
            weights.append(torch.randn(int(counts.sum()), generator=generator).to(weighted))
    return type(keyed)(
        keys=keyed.keys(),
        values=torch.cat(values),
        lengths=torch.cat(lengths),
        weights=torch.cat(weights) if weights else None,
    )

"""Trace a model once, with one symbolic batch dimension, to a flat graph of named inputs and outputs."""

from __future__ import annotations

import inspect
import itertools
import keyword
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from graphs.errors import UgsepError

Example = Mapping[str, Any] | Sequence[Any]

# Tracing with one row would let torch.export bake the batch size in; an odd number above 1 that no width
# of a real model is likely to equal keeps accidental equalities out.
TRACE_ROWS = 7


@dataclass(frozen=True)
class Traced:
    """A whole model as one flat graph.

    ``module`` takes the ``inputs`` as positional tensors (batch first) and returns a tuple, named by ``outputs``.
    Its graph is functional (no in-place op) and refers to the parameters of the traced model, not to copies.
    ``rows`` is the batch symbol; ``example`` holds the flat example tensors, TRACE_ROWS rows each.
    ``buffer_writes`` lists the buffers that forward updates with the nodes of the new values, which are dropped.
    """

    module: fx.GraphModule
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    example: tuple[Tensor, ...]
    rows: torch.SymInt
    buffer_writes: tuple[tuple[str, fx.Node], ...] = ()


def trace(module: nn.Module, example: Example) -> Traced:
    """Trace ``module`` on ``example``: a mapping of keyword arguments, or positional arguments in order.

    Arguments may be nested dicts, lists or tuples of tensors; the first axis of every tensor is the batch.

    Raises:
        UgsepError: an input that is not a tensor or has no batch axis, batches of different length, or a model
            torch.export cannot trace (its reason and source line are given).
    """
    args, kwargs = ((), dict(example)) if isinstance(example, Mapping) else (tuple(example), {})
    names, leaves = flat_inputs(module, args, kwargs)
    rows = {name: leaf.shape[0] for name, leaf in zip(names, leaves, strict=True)}
    if len(set(rows.values())) > 1:
        raise UgsepError(f"example inputs have different batch sizes {rows}; give every tensor the same first axis")
    tiled = [leaf.index_select(0, torch.arange(TRACE_ROWS) % leaf.shape[0]) for leaf in leaves]
    _, spec = pytree.tree_flatten((args, kwargs))
    args, kwargs = pytree.tree_unflatten(tiled, spec)
    batch = torch.export.Dim("batch")
    shapes = pytree.tree_map(lambda _: {0: batch}, (args, kwargs))
    bound = _bind_shapes(module, shapes[0], shapes[1])
    try:
        with torch.no_grad():
            exported = torch.export.export(module, args, kwargs, dynamic_shapes=bound, strict=False)
            exported = exported.run_decompositions({})
    except UgsepError:
        raise
    except Exception as error:  # torch.export raises many types; all of them mean the model cannot be traced
        raise UgsepError(f"torch.export cannot trace the model: {_readable(error)}") from error
    return _flatten(exported, names, tuple(tiled))


def flat_inputs(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[str], list[Tensor]]:
    """Return the names and tensors of all inputs, in the order of the flattened call.

    A tensor argument has the argument's name; a tensor inside a container has its key where that is unique among
    all inputs, else the dotted path.
    """
    parameters = [p for p in inspect.signature(module.forward).parameters.values()]
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    paths: list[tuple[str, ...]] = []
    leaves: list[Tensor] = []
    for path, leaf in pytree.tree_flatten_with_path((args, kwargs))[0]:
        keys = [str(getattr(k, "key", getattr(k, "idx", k))) for k in path[1:]]
        if getattr(path[0], "idx", None) == 0:
            position = int(keys[0])
            keys[0] = positional[position] if position < len(positional) else f"arg{position}"
        if not isinstance(leaf, Tensor):
            raise UgsepError(f"example input '{'.'.join(keys)}' is a {type(leaf).__name__}; give tensors only")
        if leaf.dim() == 0 or leaf.shape[0] == 0:
            raise UgsepError(
                f"example input '{'.'.join(keys)}' has shape {tuple(leaf.shape)}; the first axis is the batch"
            )
        paths.append(tuple(keys))
        leaves.append(leaf)
    short = [p[-1] for p in paths]
    unique = len(set(short)) == len(short)
    names = [s if unique else ".".join(p) for s, p in zip(short, paths, strict=True)]
    return names, leaves


def identifier(name: str, taken: Container[str] = ()) -> str:
    """Return ``name`` as a Python identifier not in ``taken``, for argument names of generated modules."""
    plain = re.sub(r"\W", "_", name)
    base = plain if plain.isidentifier() and not keyword.iskeyword(plain) else f"input_{plain}"
    return next(n for n in itertools.chain([base], (f"{base}__{i}" for i in itertools.count(1))) if n not in taken)


def _bind_shapes(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any] | tuple[Any, ...]:
    if not kwargs:
        return args
    bound: dict[str, Any] = dict(kwargs)
    return bound


def _readable(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    message = next(
        (line for line in lines if not line.startswith(("File", "The following call"))), type(error).__name__
    )
    source = re.findall(r'File "([^"]+)", line (\d+)', str(error))
    frames = [(f, n) for f, n in source if "/torch/" not in f and "<" not in f]
    at = f" (at {frames[-1][0]}:{frames[-1][1]})" if frames else ""
    return f"{message}{at}; rewrite that line without data-dependent control flow or shapes"


def _flatten(exported: torch.export.ExportedProgram, names: list[str], example: tuple[Tensor, ...]) -> Traced:
    whole = exported.module(check_guards=False)
    assert isinstance(whole, fx.GraphModule)
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    pending = iter(names)
    writes: list[tuple[str, fx.Node]] = []
    outputs: list[str] = []
    rows: torch.SymInt | None = None
    for node in whole.graph.nodes:
        if node.op == "placeholder":
            new = graph.placeholder(identifier(next(pending), {str(n.target) for n in copied.values()}))
            new.meta = dict(node.meta)
            copied[node] = new
            if rows is None:
                rows = node.meta["val"].shape[0]
        elif node.op == "output":
            structured = pytree.tree_unflatten(pytree.tree_leaves(node.args[0]), exported.call_spec.out_spec)
            outputs = _output_names(structured)
            graph.output(tuple(copied[n] for n in pytree.tree_leaves(node.args[0])))
        elif node.target is torch.ops.aten.copy_.default:
            writes.append((str(node.args[0].target), copied[node.args[1]]))
        elif node.target is not torch.ops.aten._assert_tensor_metadata.default:
            copied[node] = graph.node_copy(node, lambda n: copied[n])
            _fix_squeeze(copied[node])
    graph.eliminate_dead_code()
    if not isinstance(rows, torch.SymInt):
        raise UgsepError(f"torch.export fixed the batch axis to {rows}; the model must accept any number of rows")
    return Traced(fx.GraphModule(whole, graph), tuple(names), tuple(outputs), example, rows, tuple(writes))


def _fix_squeeze(node: fx.Node) -> None:
    """Make a squeeze name the axes it drops: for one row it would drop the batch axis too."""
    aten = torch.ops.aten
    if node.target not in (aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims):
        return
    source = node.args[0]
    assert isinstance(source, fx.Node)
    shape = source.meta["val"].shape
    given = node.args[1] if len(node.args) > 1 else list(range(len(shape)))
    dims = [int(d) % len(shape) for d in (given if isinstance(given, (list, tuple)) else [given])]  # type: ignore[arg-type]  # fx arguments are a union of everything
    node.target = aten.squeeze.dims
    node.args = (source, [d for d in dims if not isinstance(shape[d], torch.SymInt) and shape[d] == 1])


def _output_names(structured: Any) -> list[str]:
    found = pytree.tree_flatten_with_path(structured)[0]
    names = []
    for path, _ in found:
        keys = [str(getattr(k, "key", getattr(k, "idx", k))) for k in path]
        names.append(
            "output"
            if not keys
            else keys[0]
            if len(keys) == 1 and not keys[0].isdigit()
            else ".".join(["output", *keys])
        )
    return names

"""Trace a model once, with one symbolic batch dimension, into a flat graph of named inputs and outputs."""

from __future__ import annotations

import builtins
import itertools
import keyword
import re
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch._ops import OpOverload

from graphs.base.errors import UgsepError
from graphs.base.gc_paused import gc_paused
from graphs.trace.call import call_of, scripted_part, unwrapped, without_dataclasses
from graphs.trace.complex_numbers import without_complex_numbers
from graphs.trace.einsum import explicit
from graphs.trace.empty_pieces import drop_empty_pieces
from graphs.trace.familiar import decompositions, is_plain
from graphs.trace.flex_attention import write_out_attention
from graphs.trace.fold import fold_parameters
from graphs.trace.masked_scatter import write_out_scatters
from graphs.trace.trace_errors import (
    NO_DATA_IN_CONTROL,
    check_any_number_of_rows,
    quiet,
    readable,
    steps_through_packed_sequence,
)
from graphs.trace.widen import LOW_PRECISION, widen

Example = Mapping[str, Any] | Sequence[Any]

# With one row, torch.export would specialise on the batch size; an odd number above 1 that is unlikely to be a width
# of a real model avoids accidental equalities.
TRACE_ROWS = 7

# Names that generated modules read, which an argument of that name would shadow.
_READ_BY_GENERATED_CODE = {"self", "torch", "device", "inf", "nan", "NoneType", "fx_pytree", "pytree", *dir(builtins)}


@dataclass(frozen=True)
class Traced:
    """A whole model as one flat graph.

    ``module`` takes the ``inputs`` as positional tensors (batch first) and returns a tuple, named by ``outputs``.
    Its graph is functional (no in-place op) and refers to the parameters of the traced model, not copies.
    ``example`` holds the flat example tensors, TRACE_ROWS rows each. ``buffer_writes`` lists the buffers that
    forward updates, with the nodes of the dropped values. ``original`` calls the model as given. ``widened`` says
    that the graph computes in float32 what the model computes in bfloat16 or float16. ``constants`` names the
    arguments that were given as None, numbers or strings.
    """

    module: fx.GraphModule
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    example: tuple[Tensor, ...]
    buffer_writes: tuple[tuple[str, fx.Node], ...] = ()
    original: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] | None = None
    widened: bool = False
    constants: tuple[str, ...] = ()


def trace(module: nn.Module, example: Example) -> Traced:
    """Trace ``module`` on ``example``: a mapping of keyword arguments, or positional arguments in order.

    Arguments may be nested dicts, lists or tuples of tensors; the first axis of every tensor is the batch. None,
    numbers and strings among them become constants of the traced model. A tensor of one row beside others of N, such
    as a user's features that forward broadcasts over the items, is traced with N rows. Wrappers such as
    ``torch.compile`` and ``DataParallel`` are taken off.

    Raises:
        UgsepError: an input that has no batch axis, different batch sizes, a TorchScript module, or a model that
            torch.export cannot trace (with reason and source line).
    """
    module = unwrapped(module)
    args, kwargs = ((), dict(example)) if isinstance(example, Mapping) else (tuple(example), {})
    call = call_of(module, args, kwargs)
    names, leaves = call.names, call.tensors
    rows = {name: leaf.shape[0] for name, leaf in zip(names, leaves, strict=True)}
    if len({*rows.values()} - {1}) > 1:
        raise UgsepError(
            f"example inputs have different batch sizes {rows}; give every tensor the same first axis, or 1"
        )
    tiled = [leaf.index_select(0, torch.arange(TRACE_ROWS, device=leaf.device) % leaf.shape[0]) for leaf in leaves]
    # AUTO accepts guards that hold only for some batch sizes, of which torch's own shape logic makes many; those of
    # the model are found below.
    shapes = [{0: torch.export.Dim.AUTO} for _ in tiled]
    try:
        with torch.no_grad(), quiet(), gc_paused():
            exported = torch.export.export(call.flat(module), (tiled,), dynamic_shapes=(shapes,), strict=False)
            write_out_attention(exported)
            exported = _familiar(exported)
    except UgsepError:
        raise
    except Exception as error:  # torch.export raises many types
        _run(module, *call.with_tensors(tiled))  # the model's own error is clearer
        if scripted := scripted_part(module):
            raise UgsepError(
                f"submodule '{scripted}' is TorchScript; build the model with the original module"
            ) from error
        if steps_through_packed_sequence(error):
            raise UgsepError(
                f"the model steps through a packed sequence, whose shape depends on data: {readable(error)}; give "
                "the recurrence the padded history, and read its output at the last step by torch.gather"
            ) from error
        raise UgsepError(f"torch.export cannot trace the model: {readable(error)}; {NO_DATA_IN_CONTROL}") from error
    traced = _flatten(exported, list(names), tuple(tiled))
    check_any_number_of_rows(traced.module.graph)
    write_out_scatters(traced.module)
    without_complex_numbers(traced.module)
    fold_parameters(traced.module)

    def original(feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # Clones, because a model may write into its inputs.
        given = [feeds[name].to(leaf.dtype, copy=True) for name, leaf in zip(names, leaves, strict=True)]
        values = pytree.tree_leaves(_run(module, *call.with_tensors(given)))
        return dict(zip(traced.outputs, values, strict=True))

    traced = replace(traced, original=original, constants=call.constants)
    if not widen(traced.module):
        return traced
    wide = tuple(t.float() if t.dtype in LOW_PRECISION else t for t in traced.example)
    traced = replace(traced, example=wide, widened=True)
    _check_widened(traced, original)
    return traced


def _check_widened(traced: Traced, original: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]) -> None:
    """Check that float32 only moved the scores by roundings of shorter floats."""
    if any(t.device.type == "meta" for t in traced.example):
        return
    before = original(dict(zip(traced.inputs, traced.example, strict=True)))
    with torch.no_grad():
        after = traced.module(*traced.example)
    for (name, low), high in zip(before.items(), after, strict=True):
        if not low.is_floating_point() or not low.numel():
            continue
        difference, size = (low.double() - high.double()).nan_to_num(), low.double().nan_to_num(0.0, 0.0, 0.0)
        # bfloat16 keeps 8 bits: 0.4 % per op, a few percent after tens of ops.
        if difference.square().mean() > 0.1**2 * max(1e-12, float(size.square().mean())):
            raise UgsepError(
                f"'{name}' in float32 is {float(difference.abs().max()):.3g} off its value in 16-bit floats, more "
                "than their roundings; call .float() on the model to accept the float32 scores"
            )


def _familiar(exported: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Decompose ops without a row rule, and those in their decompositions; each round takes as long as a trace."""
    before: set[OpOverload] | None = None
    while not is_plain(exported.graph):
        table = decompositions(exported.graph)
        if before is not None and set(table) <= before:
            break
        exported = exported.run_decompositions(table)
        before = (before or set()) | set(table)
    return exported


def _run(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Call the model itself; any error it raises is its own."""
    # The fast path of TransformerEncoder puts zeros at padded positions, which training and a trace do not, and fails
    # if all are padded.
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        # A compiled part would be compiled for minutes, to be called a few times.
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            return without_dataclasses(module(*args, **kwargs))
    except Exception as error:
        raise UgsepError(
            f"the model fails on rows like its example inputs: {readable(error)}; call it by itself for a traceback"
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def identifier(name: str, taken: Container[str] = ()) -> str:
    """Return ``name`` as a Python identifier not in ``taken``, for argument names of generated modules."""
    plain = re.sub(r"\W", "_", name)
    usable = plain.isidentifier() and not keyword.iskeyword(plain) and plain not in _READ_BY_GENERATED_CODE
    base = plain if usable else f"input_{plain}"
    return next(n for n in itertools.chain([base], (f"{base}__{i}" for i in itertools.count(1))) if n not in taken)


def _flatten(exported: torch.export.ExportedProgram, names: list[str], example: tuple[Tensor, ...]) -> Traced:
    whole = exported.module(check_guards=False)
    assert isinstance(whole, fx.GraphModule)
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    pending = iter(names)
    writes: list[tuple[str, fx.Node]] = []
    outputs: list[str] = []
    for node in whole.graph.nodes:
        if node.op == "placeholder":
            new = graph.placeholder(identifier(next(pending), {str(n.target) for n in copied.values()}))
            new.meta = dict(node.meta)
            copied[node] = new
        elif node.op == "output":
            if any(not isinstance(n, fx.Node) for n in pytree.tree_leaves(node.args[0])):
                raise UgsepError(f"the model returns {_other(node)}, which is not a tensor; return tensors only")
            structured = pytree.tree_unflatten(pytree.tree_leaves(node.args[0]), exported.call_spec.out_spec)
            outputs = _output_names(structured)
            graph.output(tuple(copied[n] for n in pytree.tree_leaves(node.args[0])))
        elif node.target is torch.ops.aten.copy_.default:
            if node.args[0].op != "placeholder":  # nothing reads what forward writes into its inputs
                writes.append((str(node.args[0].target), copied[node.args[1]]))
        elif node.target is not torch.ops.aten._assert_tensor_metadata.default:
            new = graph.node_copy(node, lambda n: copied[n])
            _fix_squeeze(new)
            _fix_einsum(new)
            copied[node] = _without_need(new)
    drop_empty_pieces(graph)
    graph.eliminate_dead_code()
    return Traced(fx.GraphModule(whole, graph), tuple(names), tuple(outputs), example, tuple(writes))


def _other(node: fx.Node) -> str:
    """Return the kind of the first output that is no tensor."""
    value = next(n for n in pytree.tree_leaves(node.args[0]) if not isinstance(n, fx.Node))
    return "None" if value is None else f"a {type(value).__name__}"


def _without_need(node: fx.Node) -> fx.Node:
    """Return the node, or what it reads if it changes nothing; let it name a dtype or sizes, not a tensor of them."""
    aten = torch.ops.aten
    if node.target is aten.type_as.default:
        like = node.args[1]
        assert isinstance(like, fx.Node)
        node.target, node.args, node.kwargs = aten._to_copy.default, node.args[:1], {"dtype": like.meta["val"].dtype}
    if node.target is aten.expand_as.default:
        like = node.args[1]
        assert isinstance(like, fx.Node)
        node.target, node.args = aten.expand.default, (node.args[0], _sizes(node, like))
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node):
        return node
    converts_nothing = node.target is aten._to_copy.default and dict(node.kwargs) == {"dtype": _dtype(source)}
    drops_nothing = node.target is aten.squeeze.dims and not node.args[1]
    if not converts_nothing and not drops_nothing:
        return node
    node.graph.erase_node(node)
    return source


def _sizes(before: fx.Node, like: fx.Node) -> list[fx.Node | int]:
    """Return the shape of ``like``, read from it where it is not fixed."""
    sizes: list[fx.Node | int] = []
    for axis, size in enumerate(like.meta["val"].shape):
        if isinstance(size, int):
            sizes.append(size)
            continue
        with before.graph.inserting_before(before):
            read = before.graph.call_function(torch.ops.aten.sym_size.int, (like, axis))
        read.meta["val"] = size
        sizes.append(read)
    return sizes


def _dtype(node: fx.Node) -> torch.dtype | None:
    value = node.meta.get("val")
    return value.dtype if isinstance(value, Tensor) else None


def _fix_squeeze(node: fx.Node) -> None:
    """Make a squeeze name the axes it drops, or for one row it would drop the batch axis too."""
    aten = torch.ops.aten
    if node.target not in (aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims):
        return
    source = node.args[0]
    assert isinstance(source, fx.Node)
    shape = source.meta["val"].shape
    given = node.args[1] if len(node.args) > 1 else list(range(len(shape)))
    dims = [int(d) % len(shape) for d in (given if isinstance(given, (list, tuple)) else [given])]  # type: ignore[arg-type]  # fx arguments
    node.target = aten.squeeze.dims
    node.args = (source, [d for d in dims if not isinstance(shape[d], torch.SymInt) and shape[d] == 1])


def _fix_einsum(node: fx.Node) -> None:
    """Name every axis of an einsum."""
    if node.target is torch.ops.aten.einsum.default:
        equation, operands, *path = node.args
        assert isinstance(operands, (list, tuple))
        ranks = [n.meta["val"].dim() for n in operands if isinstance(n, fx.Node)]
        node.args = (explicit(str(equation), ranks), operands, *path)


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

"""How each op carries the row axis from its inputs to its output, and which ops mix rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import torch
from torch import Tensor, fx

from graphs.rows import moves as moves
from graphs.rows import products as products
from graphs.rows.layout import (
    CONSTANT,
    UNIFORM,
    Call,
    Layout,
    MixesRows,
    Position,
    Rows,
    agree,
    aligned,
    symbolic_axes,
    with_adopted_rows,
)
from graphs.rows.sides import is_row_count


def layout_of_call(call: Call) -> Layout:
    """Return the layout of an aten call's result.

    Raises:
        MixesRows: the op lets rows influence each other, or no rule knows it.
    """
    if call.target.namespace != "aten":
        raise MixesRows("is a custom op that cannot be checked; write it with torch functions")
    is_random = call.name in _RANDOM or call.name.startswith("rand")
    if is_random or (call.name.startswith("rrelu") and call.arguments.get("training")):
        raise MixesRows("draws random numbers, so scores differ between calls; call .eval() or remove it")
    if call.name in UNIFORM_OPS:
        if isinstance(call.arguments.get("fill_value"), fx.Node):
            raise MixesRows("uses the number of rows as a value; scores must not depend on it")
        return UNIFORM
    if call.name == "arange":
        return _arange(call)
    layouts = [call.found[n] for n in call.tensors()]
    if any(isinstance(x, Position) for x in layouts) and call.name not in _KEEP_POSITION:
        raise MixesRows("computes with the position of a row in the batch; use torch.arange(batch) only as an index")
    pointwise = torch.Tag.pointwise in call.target.tags and call.name not in _SAME
    rule = _pointwise if pointwise else _RULES.get(call.name)
    if pointwise and any(is_row_count(n) for n in call.node.all_input_nodes):
        raise MixesRows("uses the number of rows as a value; scores must not depend on it")
    if layouts and all(x is UNIFORM for x in layouts) and rule in _KEEP_UNIFORM:
        return UNIFORM
    promoted = [call.of(n) for n in call.tensors()]
    if all(x is CONSTANT for x in promoted):
        value = call.node.meta["val"]
        axes = symbolic_axes(value) if isinstance(value, Tensor) else {}
        # A parameter expanded to the rows becomes a tensor of rows; any other constant stays one.
        return Rows(next(iter(axes))) if call.name in _EXPANDS and list(axes.values()) == [1] else CONSTANT
    if UNIFORM in promoted and rule in (_pointwise, moves.join):
        call = with_adopted_rows(call)
        promoted = [call.of(n) for n in call.tensors()]
    if UNIFORM in promoted:
        raise MixesRows("is applied to a tensor with more than one batch axis; keep one")
    if rule is None:
        _refuse(call)
    return rule(call)


def _refuse(call: Call) -> NoReturn:
    if call.name == "masked_scatter":
        raise MixesRows("takes values in one order over all rows; use torch.where, or gather by the mask's cumsum")
    if call.name == "masked_select":
        raise MixesRows(
            "returns as many values as the mask holds; keep them in place with torch.where, or, if the mask is a "
            "constant, find its positions in __init__ and take x.flatten(1)[:, positions]"
        )
    if call.name in ("histc", "bincount", "histogram", "unique_dim", "unique2", "_unique2"):
        raise MixesRows("counts values over all rows; compare with the values and sum within a row")
    if call.name == "embedding_renorm":
        raise MixesRows("rescales a table that later calls read (max_norm); rescale it once, before the split")
    raise MixesRows("is not known to keep rows apart; rewrite it with row-wise operations")


def has_rule(op: torch._ops.OpOverload) -> bool:
    """Return whether a rule covers the op."""
    name = op._schema.name.split("::")[1]
    return name in _RULES or name in UNIFORM_OPS or name == "arange" or torch.Tag.pointwise in op.tags


def _arange(call: Call) -> Layout:
    value = call.node.meta["val"]
    if not symbolic_axes(value):
        return CONSTANT
    step = call.arguments.get("step", 1)
    if call.arguments.get("start", 0) != 0 or not isinstance(step, int):
        raise MixesRows("counts rows from an offset; use torch.arange(batch)")
    return Position(step)


def _pointwise(call: Call) -> Layout:
    return aligned(call, call.tensors(), call.node.meta["val"].dim())


def _along(verb: str) -> Callable[[Call], Layout]:
    """Return the rule of an op that works along ``dim`` and keeps all axes (softmax, sort, cumsum, gather)."""

    def rule(call: Call) -> Layout:
        tensors = call.tensors()
        layout = agree([call.of(n) for n in tensors])
        names = [n for n in ("dim", "dims") if n in call.arguments] or ["dim"]
        if isinstance(layout, Rows) and layout.axis in call.dims(tensors[0], names[0]):
            raise MixesRows(f"{verb} along the batch axis; keep every operation within a row")
        return layout

    return rule


def _scatter(call: Call) -> Layout:
    """Writes along ``dim`` need positions for every row; constant ones would reach only some rows."""
    source, index = call.arguments["self"], call.arguments["index"]
    if call.of(index) != call.of(source):
        raise MixesRows("writes to some rows only; expand the index to all rows")
    return _along("writes")(call)


def _index_select(call: Call) -> Layout:
    source, index = call.of(call.arguments["self"]), call.of(call.arguments["index"])
    if source is CONSTANT and isinstance(index, Rows):
        return Rows(call.dims(call.arguments["self"])[0], index.outer, index.inner)
    return _along("picks rows")(call)


def _reduce(call: Call) -> Layout:
    tensors = call.tensors()
    layout = aligned(call, tensors, max(n.meta["val"].dim() for n in tensors))
    assert isinstance(layout, Rows)
    dims = call.dims(tensors[0])
    if layout.axis in dims:
        raise MixesRows("reduces over the batch axis; keep every operation within a row")
    gone = 0 if call.arguments.get("keepdim") else sum(d < layout.axis for d in dims)
    return Rows(layout.axis - gone, layout.outer, layout.inner)


def _table(rule: Callable[[Call], Layout], names: str) -> dict[str, Callable[[Call], Layout]]:
    return dict.fromkeys(names.split(), rule)


_RANDOM = {"bernoulli", "multinomial", "normal", "normal_functional", "exponential", "uniform", "native_dropout"}
UNIFORM_OPS = {
    "zeros", "ones", "full", "empty", "zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones",
    "new_full", "new_empty", "scalar_tensor", "empty_strided", "fill", "new_empty_strided",
}  # fmt: skip
_VIEWS = ("view", "reshape", "_unsafe_view", "flatten", "unflatten", "unsqueeze", "squeeze")
_EXPANDS = ("expand", "expand_as", "broadcast_to", "repeat")
_SAME = (
    "_to_copy", "to", "clone", "contiguous", "detach", "alias", "lift_fresh_copy", "type_as", "hardswish", "prelu",
    "bucketize", "isin",
)  # fmt: skip
_PERMUTES = ("permute", "transpose", "t", "movedim", "moveaxis", "swapaxes", "swapdims", "mT", "numpy_T")
_BAGS = ("embedding_bag", "_embedding_bag", "_embedding_bag_forward_only")
_KEEP_POSITION = {*_VIEWS, *_SAME, *_PERMUTES, "expand", "slice", "index", *_BAGS}
_KEEP_UNIFORM = (_pointwise, moves.view, moves.permute, moves.expand, moves.take, moves.same)

BY_RULE: tuple[tuple[Callable[[Call], Layout], tuple[str, ...]], ...] = (
    (moves.view, _VIEWS),
    (moves.same, _SAME),
    (moves.same, ("one_hot",)),
    (_pointwise, ("copy", "floor_divide")),
    (moves.permute, _PERMUTES),
    (moves.expand, ("expand", "expand_as", "broadcast_to")),
    (moves.repeat, ("repeat",)),
    (moves.repeat_interleave, ("repeat_interleave",)),
    (_along("normalises"), ("softmax", "log_softmax", "_softmax", "_log_softmax", "softmin", "_safe_softmax")),
    (_along("sorts"), ("sort", "topk", "argsort", "kthvalue", "msort")),
    (_along("accumulates"), ("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp")),
    (_along("reorders"), ("flip", "roll")),
    (_along("gathers"), ("gather", "take_along_dim", "glu")),
    (_along("cuts windows"), ("unfold",)),
    (_scatter, ("scatter", "scatter_add", "scatter_reduce")),
    (_index_select, ("index_select",)),
    (
        _reduce,
        (
            "sum", "mean", "amax", "amin", "max", "min", "argmax", "argmin", "any", "all", "prod", "var", "std",
            "var_mean", "std_mean", "logsumexp", "norm", "nansum", "nanmean", "linalg_vector_norm", "count_nonzero",
            "mode", "median", "cosine_similarity",
        ),
    ),
    (moves.take, ("select", "slice", "narrow", "split", "split_with_sizes", "chunk", "unbind", "tensor_split",
                 "unsafe_split", "unsafe_split_with_sizes", "unsafe_chunk")),
    (moves.scatter_slice, ("select_scatter", "slice_scatter")),
    (moves.join, ("cat", "concat", "stack")),
    (moves.pad, ("constant_pad_nd", "pad")),
    (moves.index, ("index",)),
    (moves.index_put, ("index_put",)),
    (moves.not_last_two, ("tril", "triu")),
    (products.matmul, ("matmul", "mm", "bmm", "addmm", "baddbmm", "mv", "dot")),
    (products.linear, ("linear",)),
    (products.einsum, ("einsum",)),
    (products.norm, ("layer_norm", "rms_norm", "native_layer_norm", "_fused_rms_norm")),
    (
        products.batch_norm,
        (
            "batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit", "native_batch_norm",
            "_native_batch_norm_legit_functional",
        ),
    ),
    (
        products.channels,
        (
            "conv1d", "conv2d", "conv3d", "convolution", "group_norm", "instance_norm", "avg_pool1d", "avg_pool2d",
            "max_pool1d", "max_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_max_pool1d",
        ),
    ),
    (products.dropout, ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")),
    (products.embedding, ("embedding",)),
    (products.embedding_bag, _BAGS),
    (products.attention, ("scaled_dot_product_attention",)),
    (products.recurrent, ("gru", "lstm", "rnn_tanh", "rnn_relu")),
)  # fmt: skip
_RULES = {name: rule for rule, names in BY_RULE for name in names}

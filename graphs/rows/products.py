"""How products, norms, lookups, attention and recurrences carry the row axis."""

from __future__ import annotations

from torch import fx

from graphs.rows.layout import CONSTANT, UNIFORM, Call, Layout, MixesRows, Position, Rows, agree, aligned


def matmul(call: Call) -> Layout:
    """Products must neither contract the rows nor multiply rows with each other."""
    biased = call.name in ("addmm", "baddbmm")
    left, right = call.node.args[1:3] if biased else call.node.args[:2]
    assert isinstance(left, fx.Node)
    assert isinstance(right, fx.Node)
    a, b = left.meta["val"].dim(), right.meta["val"].dim()
    rank = call.node.meta["val"].dim()
    x, y = call.of(left), call.of(right)
    layouts: list[Layout] = []
    if isinstance(x, Rows):
        if x.axis == a - 1:
            raise MixesRows("contracts the batch axis; keep every operation within a row")
        layouts.append(Rows(x.axis + rank - a + (b == 1), x.outer, x.inner))
    if isinstance(y, Rows):
        if y.axis == max(b - 2, 0):
            raise MixesRows("contracts the batch axis; keep every operation within a row")
        layouts.append(Rows(y.axis + rank - b + (a == 1 and y.axis < b - 1), y.outer, y.inner))
    if biased:
        layouts.append(aligned(call, [call.arguments["self"]], rank))
    return agree(layouts)


def linear(call: Call) -> Layout:
    """Constant weights on the last axis."""
    source, *weights = call.tensors()
    layout = call.of(source)
    if any(call.of(w) is not CONSTANT for w in weights):
        raise MixesRows("uses weights computed per row; use torch.matmul with a batch of matrices")
    if isinstance(layout, Rows) and layout.axis == source.meta["val"].dim() - 1:
        raise MixesRows("contracts the batch axis; keep every operation within a row")
    return layout


def einsum(call: Call) -> Layout:
    """Einsums: the rows need one letter, which the result keeps."""
    terms, result = call.arguments["equation"].split("->")  # a trace names every axis
    letters = set()
    sizes = set()
    for term, node in zip(terms.split(","), call.arguments["tensors"], strict=True):
        layout = call.of(node)
        if isinstance(layout, Rows):
            letters.add(term[layout.axis])
            sizes.add((layout.outer, layout.inner))
    if len(letters) != 1 or len(sizes) != 1 or not letters <= set(result):
        raise MixesRows("contracts or pairs the batch axis; give it one letter in every term and in the result")
    return Rows(result.index(letters.pop()), *sizes.pop())


def norm(call: Call) -> Layout:
    """Norms over the last axes."""
    source = call.first()
    layout = call.of(source)
    last = source.meta["val"].dim() - len(call.arguments["normalized_shape"])
    if isinstance(layout, Rows) and layout.axis >= last:
        raise MixesRows("normalises over the batch axis; keep every operation within a row")
    return layout


def batch_norm(call: Call) -> Layout:
    """Norms with running statistics; batch statistics are rejected."""
    layout = call.of(call.first())
    if call.arguments.get("training", False):
        raise MixesRows("normalises with the statistics of the batch; call .eval() on the model before splitting")
    if not isinstance(layout, Rows) or layout.axis != 0:
        raise MixesRows("treats the rows as channels; keep the batch the first axis")
    return (layout, CONSTANT, CONSTANT) if isinstance(call.node.meta["val"], (tuple, list)) else layout


def channels(call: Call) -> Layout:
    """Convolutions, pooling and group norms: batch first, weights constant."""
    source, *weights = call.tensors()
    layout = call.of(source)
    if not isinstance(layout, Rows) or layout.axis != 0 or any(call.of(w) is not CONSTANT for w in weights):
        raise MixesRows("slides or normalises over the batch axis; keep the batch the first axis")
    return layout


def dropout(call: Call) -> Layout:
    """Dropout does nothing in eval mode and is rejected in training mode."""
    if call.arguments.get("train", call.arguments.get("training", True)) and call.arguments.get("p", 1) != 0:
        raise MixesRows("drops values at random; call .eval() on the model before splitting")
    return call.of(call.first())


def embedding(call: Call) -> Layout:
    """Lookups of ids in a constant table."""
    if call.of(call.arguments["weight"]) is not CONSTANT:
        raise MixesRows("looks rows up in a table computed from other rows; keep tables parameters")
    return call.of(call.arguments["indices"])


def embedding_bag(call: Call) -> Layout:
    """Lookups of fixed-length bags in a constant table."""
    ids, offsets = call.of(call.arguments["indices"]), call.found[call.arguments["offsets"]]
    weights = call.arguments.get("per_sample_weights")
    if call.of(call.arguments["weight"]) is not CONSTANT or not isinstance(ids, Rows) or ids.outer != 1:
        raise MixesRows("looks rows up in a table computed from other rows; keep tables parameters")
    if offsets != Position(ids.inner) or (weights is not None and call.of(weights) != ids):
        raise MixesRows("has bags of varying length over all rows; pad the ids to [batch, length] and mask them")
    # The other results are for training; the layout Position(0), which no op accepts, prevents their use.
    return (Rows(0), Position(0), Position(0), Position(0))


def attention(call: Call) -> Layout:
    """Attention within a row: the rows are a leading axis of query, key, value and mask."""
    query = call.arguments["query"]
    rank = query.meta["val"].dim()
    mask = call.arguments.get("attn_mask")
    if call.arguments.get("dropout_p"):
        raise MixesRows("drops values at random; call .eval() on the model before splitting")
    keys = [query, call.arguments["key"], call.arguments["value"], *([mask] if mask is not None else [])]
    layout = aligned(call, keys, rank)
    if isinstance(layout, Rows) and layout.axis >= rank - 2:
        raise MixesRows("attends from one row to another; keep the batch a leading axis")
    return layout


def recurrent(call: Call) -> Layout:
    """Recurrences over a padded sequence."""
    source = call.arguments.get("input")
    if source is None or "batch_first" not in call.arguments:
        raise MixesRows("runs over a packed sequence of all rows; use padded sequences and a mask")
    if call.arguments["train"] and call.arguments["dropout"]:
        raise MixesRows("drops values at random; call .eval() on the model before splitting")
    layout = call.of(source)
    axis = 0 if call.arguments["batch_first"] else 1
    if (
        layout != Rows(axis, getattr(layout, "outer", 1), getattr(layout, "inner", 1))
        or len(source.meta["val"].shape) != 3
    ):
        raise MixesRows("steps over the batch axis; set batch_first to match the input")
    hidden = Rows(1, layout.outer, layout.inner)
    given = call.arguments["hx"]
    for state in given if isinstance(given, (list, tuple)) else [given]:
        if call.found[state] is not UNIFORM and call.of(state) not in (hidden, CONSTANT):
            raise MixesRows("starts from a state whose rows are along another axis; pass [layers, batch, width]")
    return (layout, *[hidden] * (len(call.node.meta["val"]) - 1))

"""Complex numbers as pairs of real numbers: rotary embeddings and FFT filters in operations that every runtime has.

A complex tensor [...] becomes a real one [..., 2]. Discrete Fourier transforms become products with constant
matrices, whose cost grows with the square of the length; histories are short.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch._guards import detect_fake_mode
from torch.utils import _pytree as pytree

from graphs.base.errors import UgsepError
from graphs.trace.node_location import location_of

__all__ = ["has_real_form", "without_complex_numbers"]

aten = torch.ops.aten


def has_real_form(op: object) -> bool:
    """Return whether an op on complex numbers can be written with real ones."""
    return op in _WRITERS


def without_complex_numbers(module: fx.GraphModule) -> None:
    """Rewrite a traced graph to real numbers, in place.

    Raises:
        UgsepError: a complex input or output, an op on complex numbers without a real form here, or a Fourier
            transform over the batch.
    """
    graph = module.graph
    if not any(_is_complex(value) for n in graph.nodes for value in pytree.tree_leaves(n.meta.get("val"))):
        return
    writer = _Writer(module)
    for node in list(graph.nodes):
        reads = any(_is_complex(n.meta.get("val")) for n in node.all_input_nodes)
        if node.op == "output" and reads:
            raise UgsepError("the model returns complex numbers; return torch.view_as_real of them")
        if node.op in ("placeholder", "get_attr", "call_function") and (reads or _is_complex(node.meta.get("val"))):
            writer.visit(node)
    graph.eliminate_dead_code()
    module.recompile()


def _is_complex(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_complex()


class _Writer:
    """Adds nodes before the one it visits; ``pairs`` has the real node [..., 2] of every complex one."""

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self.pairs: dict[fx.Node, fx.Node] = {}
        self.like = next(iter(module.graph.nodes))
        mode = detect_fake_mode([n.meta["val"] for n in module.graph.nodes if isinstance(n.meta.get("val"), Tensor)])
        assert mode is not None
        self.mode = mode

    def visit(self, node: fx.Node) -> None:
        """Note the pairs of a complex node, or replace a real node that reads complex ones."""
        self.like = node
        if node.op == "placeholder":
            raise UgsepError(f"input '{node.target}' is complex; pass torch.view_as_real of it and combine it inside")
        if node.op == "get_attr":
            value = self.module
            for part in str(node.target).split("."):
                value = getattr(value, part)
            assert isinstance(value, Tensor)
            self.pairs[node] = self.constant(f"{str(node.target).replace('.', '_')}_pairs", torch.view_as_real(value))
            return
        write = _WRITERS.get(node.target)
        if write is None:
            raise UgsepError(
                f"{location_of(node)} computes with complex numbers, for which there is no real form here; write it "
                "with real numbers, as torch.view_as_real gives them"
            )
        made = write(self, *node.args, **node.kwargs)
        if _is_complex(node.meta["val"]):
            self.pairs[node] = made
        else:
            node.replace_all_uses_with(made)

    def call(self, target: Any, *arguments: Any, **options: Any) -> fx.Node:
        """Add a call, attributed to the module of the node that it is for."""
        with self.module.graph.inserting_before(self.like):
            node = self.module.graph.call_function(target, arguments, options)
        node.meta = {k: v for k, v in self.like.meta.items() if k in ("nn_module_stack", "stack_trace")}
        values, keywords = pytree.tree_map_only(fx.Node, lambda n: n.meta["val"], (arguments, options))
        with self.mode, enable_python_dispatcher(), torch.no_grad():
            node.meta["val"] = target(*values, **keywords)
        return node

    def constant(self, name: str, value: Tensor) -> fx.Node:
        """Add a constant, once per name."""
        if not hasattr(self.module, name):
            self.module.register_buffer(name, value.detach().clone())
        with self.module.graph.inserting_before(self.like):
            node = self.module.graph.create_node("get_attr", name)
        with self.mode:
            node.meta["val"] = torch.empty(value.shape, dtype=value.dtype, device=value.device)
        return node

    def pair(self, value: Any) -> fx.Node:
        """Return the pairs of a complex node, or of a real one, whose imaginary parts are zero."""
        return (
            self.pairs[value] if value in self.pairs else self.join(value, self.call(aten.zeros_like.default, value))
        )

    def parts(self, value: Any) -> tuple[fx.Node, fx.Node]:
        """Return the real and the imaginary parts of a complex node."""
        pair = self.pairs[value] if value in self.pairs else value
        return self.call(aten.select.int, pair, -1, 0), self.call(aten.select.int, pair, -1, 1)

    def join(self, real: fx.Node, imaginary: fx.Node) -> fx.Node:
        """Return pairs of parts."""
        return self.call(aten.stack.default, [real, imaginary], -1)


def _mul(w: _Writer, a: Any, b: Any) -> fx.Node:
    a, b = (b, a) if a not in w.pairs else (a, b)
    if a not in w.pairs:  # a real tensor and a complex number
        number = a if isinstance(a, complex) else b
        real = b if number is a else a
        return w.join(*(w.call(aten.mul.Tensor, real, part) for part in (number.real, number.imag)))
    if isinstance(b, (int, float)):
        return w.call(aten.mul.Tensor, w.pairs[a], b)
    real, imaginary = w.parts(a)
    if isinstance(b, fx.Node) and b not in w.pairs:
        return w.call(aten.mul.Tensor, w.pairs[a], w.call(aten.unsqueeze.default, b, -1))
    c, d = (b.real, b.imag) if isinstance(b, complex) else w.parts(b)
    first = w.call(aten.sub.Tensor, w.call(aten.mul.Tensor, real, c), w.call(aten.mul.Tensor, imaginary, d))
    second = w.call(aten.add.Tensor, w.call(aten.mul.Tensor, real, d), w.call(aten.mul.Tensor, imaginary, c))
    return w.join(first, second)


def _div(w: _Writer, a: Any, b: Any) -> fx.Node:
    if isinstance(b, complex) or b in w.pairs:
        raise UgsepError(f"{location_of(w.like)} divides by complex numbers; multiply by their inverses")
    return w.call(aten.div.Tensor, w.pairs[a], w.call(aten.unsqueeze.default, b, -1) if isinstance(b, fx.Node) else b)


def _sum_of(target: Any) -> Callable[..., fx.Node]:
    def write(w: _Writer, a: Any, b: Any, **options: Any) -> fx.Node:
        if not isinstance(a, fx.Node) or not isinstance(b, fx.Node):
            raise UgsepError(f"{location_of(w.like)} adds a number to complex ones; add it to their real parts")
        return w.call(target, w.pair(a), w.pair(b), **options)

    return write


def _conjugate(w: _Writer, a: fx.Node) -> fx.Node:
    real, imaginary = w.parts(a)
    return w.join(real, w.call(aten.neg.default, imaginary))


def _abs(w: _Writer, a: fx.Node) -> fx.Node:
    squares = w.call(aten.mul.Tensor, w.pairs[a], w.pairs[a])
    return w.call(aten.sqrt.default, w.call(aten.sum.dim_IntList, squares, [-1]))


def _angle(w: _Writer, a: fx.Node) -> fx.Node:
    real, imaginary = w.parts(a)
    return w.call(aten.atan2.default, imaginary, real)


def _polar(w: _Writer, size: fx.Node, angle: fx.Node) -> fx.Node:
    turned = (w.call(part, angle) for part in (aten.cos.default, aten.sin.default))
    return w.join(*(w.call(aten.mul.Tensor, size, part) for part in turned))


def _exp(w: _Writer, a: fx.Node) -> fx.Node:
    real, imaginary = w.parts(a)
    return _polar(w, w.call(aten.exp.default, real), imaginary)


def _same(w: _Writer, a: fx.Node, *rest: Any, **options: Any) -> fx.Node:
    return w.call(w.like.target, w.pairs[a], *rest)


def _cast(w: _Writer, a: fx.Node, *rest: Any, **options: Any) -> fx.Node:
    dtype = w.like.meta["val"].dtype
    if not dtype.is_complex:
        return w.call(aten._to_copy.default, w.parts(a)[0], dtype=dtype)
    return w.call(aten._to_copy.default, w.pair(a), dtype=dtype.to_real())


def _sized(w: _Writer, a: fx.Node, sizes: Any, **options: Any) -> fx.Node:
    return w.call(w.like.target, w.pairs[a], [*sizes, 2])


def _along(count: int = 1) -> Callable[..., fx.Node]:
    """Return the writer of an op whose arguments after the tensor begin with ``count`` axes or lists of axes."""

    def write(w: _Writer, a: Any, *rest: Any, **options: Any) -> fx.Node:
        many = isinstance(a, (list, tuple))
        rank = (a[0] if many else a).meta["val"].dim()
        rank += w.like.target in (aten.unsqueeze.default, aten.stack.default)
        given = rest or (0,)
        axes = [[d % rank for d in x] if isinstance(x, (list, tuple)) else x % rank for x in given[:count]]
        if w.like.target is aten.permute.default:
            axes = [[*axes[0], rank]]
        return w.call(w.like.target, [w.pair(n) for n in a] if many else w.pairs[a], *axes, *given[count:], **options)

    return write


def _pad(w: _Writer, a: fx.Node, pad: Any, value: float = 0) -> fx.Node:
    return w.call(aten.constant_pad_nd.default, w.pairs[a], [0, 0, *pad], value)


def _roots(length: int, count: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return cosines and sines of 2 pi j k / length, [length, count]."""
    steps = torch.outer(torch.arange(length), torch.arange(count)) % length  # exact before the angle is rounded
    angles = steps.double() * (2 * math.pi / length)
    dtype = like.real.dtype if like.is_complex() else like.dtype
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _product(w: _Writer, value: fx.Node, axis: int, matrix: Tensor, name: str) -> fx.Node:
    """Multiply an axis by a matrix [before, after]."""
    last = w.call(aten.transpose.int, value, axis, -1)
    found = w.call(aten.matmul.default, last, w.constant(f"{name}_{str(matrix.dtype)[6:]}", matrix))
    return w.call(aten.transpose.int, found, axis, -1)


def _length(w: _Writer, a: fx.Node, axis: int) -> int:
    size = a.meta["val"].shape[axis]
    if not isinstance(size, int):
        raise UgsepError(f"rows depend on each other: {location_of(w.like)} transforms the batch axis; name another")
    return size


def _scale(w: _Writer, value: fx.Node, elements: int, norm: int) -> fx.Node:
    """Scale by 1, 1 / sqrt(elements) or 1 / elements, as the norm 0, 1 or 2 says."""
    return w.call(aten.mul.Tensor, value, elements ** (-norm / 2)) if norm else value


def _turned(w: _Writer, parts: tuple[fx.Node, fx.Node], axis: int, n: int, like: Tensor, forward: bool) -> Any:
    cosines, sines = _roots(n, n, like)
    real, imaginary = parts
    of = [
        _product(w, part, axis, matrix, f"fourier_{kind}_{n}")
        for part in (real, imaginary)
        for kind, matrix in (("cos", cosines), ("sin", sines))
    ]
    plus, minus = aten.add.Tensor, aten.sub.Tensor
    # e^(-i a) (x + i y) = (x cos a + y sin a) + i (y cos a - x sin a) forward; the signs of the sines turn backward.
    return (
        w.call(plus if forward else minus, of[0], of[3]),
        w.call(minus if forward else plus, of[2], of[1]),
    )


def _fft(w: _Writer, a: fx.Node, dims: list[int], norm: int, forward: bool) -> fx.Node:
    value, parts = a.meta["val"], w.parts(w.pair(a))
    sizes = [_length(w, a, d) for d in dims]
    for d, n in zip(dims, sizes, strict=True):
        parts = _turned(w, parts, d % value.dim(), n, value, forward)
    return _scale(w, w.join(*parts), math.prod(sizes), norm)


def _real_fft(w: _Writer, a: fx.Node, dims: list[int], norm: int, onesided: bool) -> fx.Node:
    value = a.meta["val"]
    sizes = [_length(w, a, d) for d in dims]
    axis, n = dims[-1] % value.dim(), sizes[-1]
    count = n // 2 + 1 if onesided else n
    cosines, sines = _roots(n, count, value)
    real = _product(w, a, axis, cosines, f"fourier_cos_{n}_{count}")
    imaginary = w.call(aten.neg.default, _product(w, a, axis, sines, f"fourier_sin_{n}_{count}"))
    parts = (real, imaginary)
    for d, size in zip(dims[:-1], sizes[:-1], strict=True):
        parts = _turned(w, parts, d % value.dim(), size, value, forward=True)
    return _scale(w, w.join(*parts), math.prod(sizes), norm)


def _fft_to_real(w: _Writer, a: fx.Node, dims: list[int], norm: int, n: int) -> fx.Node:
    value, parts = a.meta["val"], w.parts(a)
    sizes = [_length(w, a, d) for d in dims[:-1]]
    for d, size in zip(dims[:-1], sizes, strict=True):
        parts = _turned(w, parts, d % value.dim(), size, value, forward=False)
    axis, count = dims[-1] % value.dim(), n // 2 + 1
    cosines, sines = _roots(n, count, value)
    # Every frequency but the first, and the last of an even length, stands for its mirror image too.
    weights = torch.full((count,), 2.0, dtype=cosines.dtype)
    weights[0] = 1
    if n % 2 == 0:
        weights[-1] = 1
        sines[:, -1] = 0  # of multiples of pi
    back = ((cosines * weights).T.contiguous(), (sines * weights).T.contiguous())
    real, imaginary = (
        _product(w, part, axis, matrix, f"fourier_back_{kind}_{n}")
        for part, kind, matrix in zip(parts, ("cos", "sin"), back, strict=True)
    )
    return _scale(w, w.call(aten.sub.Tensor, real, imaginary), math.prod(sizes) * n, norm)


_SAME = (
    aten.neg.default, aten.clone.default, aten.contiguous.default, aten.detach.default, aten.alias.default,
    aten.lift_fresh_copy.default, aten.index.Tensor, aten.embedding.default,
)  # fmt: skip
_SIZED = (aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.expand.default)
_AXIS = (
    aten.unsqueeze.default, aten.squeeze.dims, aten.permute.default, aten.select.int, aten.slice.Tensor,
    aten.cat.default, aten.stack.default, aten.index_select.default, aten.sum.dim_IntList, aten.mean.dim,
    aten.flip.default,
)  # fmt: skip

_WRITERS: dict[Any, Callable[..., fx.Node]] = {
    aten.view_as_complex.default: lambda w, a: a,
    aten.view_as_real.default: lambda w, a: w.pairs[a],
    aten.complex.default: lambda w, a, b: w.join(a, b),
    aten.real.default: lambda w, a: w.parts(a)[0],
    aten.imag.default: lambda w, a: w.parts(a)[1],
    aten.polar.default: _polar,
    aten.mul.Tensor: _mul,
    aten.div.Tensor: _div,
    aten.add.Tensor: _sum_of(aten.add.Tensor),
    aten.sub.Tensor: _sum_of(aten.sub.Tensor),
    aten.abs.default: _abs,
    aten.angle.default: _angle,
    aten.exp.default: _exp,
    **dict.fromkeys((aten.conj.default, aten._conj.default, aten.conj_physical.default), _conjugate),
    **dict.fromkeys((aten.resolve_conj.default, aten.resolve_neg.default), lambda w, a: w.pairs[a]),
    **dict.fromkeys((aten._to_copy.default, aten.to.dtype), _cast),
    **dict.fromkeys(_SAME, _same),
    **dict.fromkeys(_SIZED, _sized),
    **dict.fromkeys(_AXIS, _along()),
    **dict.fromkeys((aten.transpose.int, aten.movedim.int, aten.flatten.using_ints), _along(2)),
    aten.constant_pad_nd.default: _pad,
    aten._fft_c2c.default: _fft,
    aten._fft_r2c.default: _real_fft,
    aten._fft_c2r.default: _fft_to_real,
}

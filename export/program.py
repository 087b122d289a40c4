"""The exported program of a subgraph, made from its graph without tracing again.

``torch.export`` runs a module three times to get here (capture, functionalization, decompositions), which for a large
model takes longer than writing its weights. A subgraph is already a flat functional ATen graph from such a run; only
shapes with the rows of its own inputs are missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch._subclasses.functional_tensor import dispatch_functionalize
from torch.export import ExportedProgram
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.utils import _pytree as pytree

from export.decompositions.table import decomposition
from graphs.base.errors import UgsepError
from graphs.split.split import Subgraph
from graphs.trace.node_location import location_of

aten = torch.ops.aten

LENGTH = "history"  # of the history, in files whose graphs take any


class Program(ExportedProgram):
    """A program whose graph the ONNX exporter can write, except for single ops that it decomposes."""

    def run_decompositions(
        self,
        decomp_table: dict[torch._ops.OperatorBase, Callable[..., Any]] | None = None,
        decompose_custom_triton_ops: bool = False,
    ) -> ExportedProgram:
        """Return the program with the ops of the table decomposed in place; the others are not run again."""
        table = torch.export.default_decompositions() if decomp_table is None else decomp_table
        replaced = False
        for node in list(self.graph.nodes):
            if node.op != "call_function":
                continue
            exact = decomposition(node)
            replaced |= exact is not None
            if exact is not None or node.target in table or _is_composite_view(node.target):
                parts = exact or table.get(node.target, node.target)
                for value, result in _decompose(self.graph, node, parts, table).items():
                    self.graph_signature.replace_all_uses(value, result)
        # Attention by the decomposition has another memory layout than by the kernel, of which a view may not exist.
        for node in self.graph.find_nodes(op="call_function", target=aten.view.default) if replaced else ():
            node.target = aten.reshape.default
        return self


def _is_composite_view(target: Any) -> bool:
    """Return whether ``torch.export`` always decomposes this op: a view made of others, such as movedim."""
    if not isinstance(target, torch._ops.OpOverload) or not target._can_decompose():
        return False
    return any(argument.alias_info is not None for argument in target._schema.arguments)


def _decompose(
    graph: fx.Graph, node: fx.Node, parts_of: Callable[..., Any], table: Mapping[Any, Callable[..., Any]]
) -> dict[str, str]:
    """Replace a node by what ``parts_of`` computes, decomposed by ``table``.

    Returns the names of the values that the graph reads, and of the nodes in their place.

    Raises:
        UgsepError: the graph reads a value of the node that ``parts_of`` does not compute.
    """
    inputs = list(node.all_input_nodes)

    def whole(*values: Any) -> Any:
        given = dict(zip(inputs, values, strict=True))
        arguments, options = pytree.tree_map_only(fx.Node, given.__getitem__, (node.args, node.kwargs))
        return parts_of(*arguments, **options)

    with enable_python_dispatcher(), torch.no_grad():
        # Some decompositions write into a tensor they allocate.
        parts = make_fx(dispatch_functionalize(whole), dict(table))(*[n.meta["val"] for n in inputs])
    for part in parts.graph.nodes:  # for messages about what the exporter refuses
        part.meta |= {k: node.meta[k] for k in ("stack_trace", "nn_module_stack") if k in node.meta}
    with graph.inserting_before(node):
        copied = dict(zip(parts.graph.find_nodes(op="placeholder"), inputs, strict=True))
        made = graph.graph_copy(parts.graph, copied)
    results = list(made) if isinstance(made, (list, tuple)) else [made]
    replaced: dict[str, str] = {}
    for value, position in _values(node).items():
        result = results[position] if position < len(results) else None
        if not isinstance(result, fx.Node):
            raise UgsepError(
                f"{location_of(node)} has a form in ONNX for its first value only; take positions from torch.sort"
            )
        value.replace_all_uses_with(result)
        replaced[value.name] = result.name
    for unused in [*node.users, node]:
        graph.erase_node(unused)
    return replaced


def _values(node: fx.Node) -> dict[fx.Node, int]:
    """Return the values of a node that the graph reads: the node itself, or those of the several that it returns."""
    if not isinstance(node.meta["val"], (tuple, list)):
        return {node: 0}
    return {user: int(user.args[1]) for user in node.users if user.users}  # type: ignore[arg-type]  # a getitem


def program_of(
    subgraph: Subgraph,
    feeds: Mapping[str, Tensor],
    rows: Mapping[str, str],
    lengths: Mapping[str, tuple[int, int]] | None = None,
) -> Program:
    """Return the program of ``subgraph``.

    Args:
        subgraph: the graph.
        feeds: example tensors by input name, at least 2 rows each.
        rows: the name of each input's first axis; inputs left out keep their size.
        lengths: of inputs that follow the length of the history, the axis and by how much it is longer.

    Raises:
        UgsepError: the shapes of an op hold for some numbers of rows or lengths only.
    """
    lengths = {name: at for name, at in (lengths or {}).items() if name in subgraph.inputs}
    environment = ShapeEnv()
    mode = FakeTensorMode(shape_env=environment)
    sizes = {rows[name]: feeds[name].shape[0] for name in subgraph.inputs if name in rows}
    for name, (axis, more) in lengths.items():
        sizes[LENGTH] = feeds[name].shape[axis] - more
    symbols = {axis: _symbol(environment, axis, size) for axis, size in sorted(sizes.items())}
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    inputs: list[InputSpec] = []
    state: dict[str, Tensor] = {}
    constants: dict[str, fx.Node] = {}
    for number, name in enumerate(dict.fromkeys(str(n.target) for n in _get_attrs(subgraph))):  # before the inputs
        tensor = _attribute(subgraph.module, name)
        node = graph.placeholder(f"constant_{number}")
        node.meta["val"] = mode.from_tensor(tensor.detach(), static_shapes=True)
        state[name], constants[name] = tensor.detach(), node
        inputs.append(InputSpec(InputKind.BUFFER, TensorArgument(node.name), name, persistent=True))
    given = iter(subgraph.inputs)
    with mode, enable_python_dispatcher(), torch.no_grad():  # without the dispatcher, pad fixes the number of rows
        for old in subgraph.module.graph.nodes:
            if old.op == "get_attr":
                copied[old] = constants[str(old.target)]
                continue
            if old.op == "output":
                outputs = graph.output(tuple(copied[n] for n in old.args[0]))
                outputs.meta["val"] = tuple(n.meta["val"] for n in outputs.args[0])
                continue
            new = copied[old] = _copied(graph, old, copied)
            if old.op == "placeholder":
                name = next(given)
                example = feeds[name]
                shape = [symbols[rows[name]] if name in rows else example.shape[0], *example.shape[1:]]
                if name in lengths:
                    axis, more = lengths[name]
                    shape[axis] = symbols[LENGTH] + more
                new.meta = {"val": torch.empty(shape, dtype=example.dtype, device=example.device)}
                inputs.append(InputSpec(InputKind.USER_INPUT, TensorArgument(new.name), None))
                continue
            values, options = pytree.tree_map_only(fx.Node, lambda n: n.meta["val"], (new.args, new.kwargs))
            new.meta["val"] = new.target(*values, **options)  # type: ignore[operator]  # an aten overload
    if environment.replacements:
        fixed = ", ".join(f"{axis} = {sizes[axis]}" for axis in symbols)
        raise UgsepError(f"a shape of the graph holds for {fixed} only; compute it from the number of rows")
    results = [OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(n.name), None) for n in outputs.args[0]]
    ranges = {s.node.expr: environment.bound_sympy(s.node.expr) for s in symbols.values()}
    return Program({}, graph, ExportGraphSignature(inputs, results), state, ranges, [], None, {})


def _symbol(environment: ShapeEnv, axis: str, size: int) -> torch.SymInt:
    source = torch._dynamo.source.ConstantSource(axis)
    symbol = environment.create_symbol(size, source, DimDynamic.DYNAMIC)
    found = environment.create_symintnode(symbol, hint=size, source=source)
    assert isinstance(found, torch.SymInt)
    return found


def _copied(graph: fx.Graph, node: fx.Node, copied: Mapping[fx.Node, fx.Node]) -> fx.Node:
    new = graph.node_copy(node, copied.__getitem__)
    if new.target is aten.squeeze.dims and len(new.args[1]) == 1:  # type: ignore[arg-type]  # a list of axes
        new.target, new.args = aten.squeeze.dim, (new.args[0], new.args[1][0])  # type: ignore[index]  # the same
    return new


def _get_attrs(subgraph: Subgraph) -> list[fx.Node]:
    return [n for n in subgraph.module.graph.nodes if n.op == "get_attr"]


def _attribute(module: fx.GraphModule, name: str) -> Tensor:
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part)
    assert isinstance(found, Tensor)
    return found

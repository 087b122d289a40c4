"""Refuse, at the export, an op that ONNX Runtime has no kernel for: with its module and source line."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from graphs.base.errors import UgsepError, first_line, printable_line
from graphs.split.split import Subgraph
from graphs.trace.node_location import location_of

#: Types that every op of the exporter has kernels for.
_COMMON = {torch.float32, torch.int64, torch.int32, torch.bool}
_MISSING = re.compile(r"implementation for (\w+)\(\d+\) node with name '([^']*)'")
#: Ops that the runtime computes by others, by one of those.
_MADE_OF = {"Erf": "gelu"}


def check_kernels(path: Path, subgraph: Subgraph) -> None:
    """Load an exported graph in ONNX Runtime if it computes in a type that not every op has a kernel for.

    Raises:
        UgsepError: an op without a kernel for its type.
    """
    unusual = [n for n in subgraph.module.graph.nodes if _types(n) - _COMMON]
    if not unusual:
        return
    try:
        import onnxruntime
    except ImportError:
        return  # the backends say that it is missing
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base but Exception
        said = _MISSING.search(str(error))
        if said is None:
            reason = printable_line(first_line(error))[:200]
            raise UgsepError(f"'{path.name}' does not load in ONNX Runtime: {reason}") from error
        op, name = said[1], said[2].removeprefix("node_")
        word = _MADE_OF.get(op, op.lower())
        node = next((n for n in unusual if n.name == name), None)
        node = node or next((n for n in unusual if word in str(n.target).lower()), unusual[0])
        types = ", ".join(sorted(str(t).removeprefix("torch.") for t in _types(node) - _COMMON))
        raise UgsepError(
            f"ONNX Runtime has no {op} for {types}, which {location_of(node)} needs; convert to float32 before it"
        ) from error


def _types(node: fx.Node) -> set[torch.dtype]:
    return {value.dtype for value in pytree.tree_leaves(node.meta.get("val")) if isinstance(value, Tensor)}

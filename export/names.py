"""The names of the nodes and values this tool adds to a graph: formatted and parsed here alone.

What is made from ``x`` has a name that begins with ``x``, so that profiles and compiled engines stay readable.
"""

from __future__ import annotations

from typing import Literal

__all__ = [
    "Role", "dequantize_node", "derived", "gemm_node", "merged", "numbered_node", "of_index", "routed", "shape",
    "shared", "sliced", "step_node", "without",
]  # fmt: skip

#: What a derived value is to the one it is named after.
Role = Literal[
    "T", "all_rows", "before", "blocks", "calibrated", "cells", "column", "columns", "cut", "dequantized",
    "experts", "first", "flat", "float", "folded", "fp32", "inner", "int8", "joined", "lists", "matrix", "maximum",
    "norm", "one_row", "places", "product", "rounded", "row", "rows", "scale", "separate", "size", "sizes", "step",
    "sum", "token", "tokens", "turned", "users", "vector", "zeros",
]  # fmt: skip


def sliced(name: str | None, *index: int) -> str:
    """Return the name of one slice of a value: ``x[3]`` of a feature token, ``x[3,1]`` of a token and an expert."""
    return f"{name}[{','.join(map(str, index))}]"


def derived(name: str | None, *roles: Role) -> str:
    """Return the name of what is made from a value: ``x.scale``, ``x.scale.column``."""
    return ".".join((str(name), *roles))


def without(name: str, role: Role) -> str:
    """Return the name that ``name`` was derived from in this role, or ``name`` itself."""
    return name.removesuffix(f".{role}")


def merged(names: list[str]) -> str:
    """Return the name of the weight that several are joined to: ``a+b``."""
    return "+".join(names)


def shared(kind: str, *parts: object) -> str:
    """Return the name of a constant that a lowering adds once per graph: ``lowering.axes.0``."""
    return ".".join(("lowering", kind, *map(str, parts)))


def shape(sizes: list[int]) -> str:
    """Return the name of a constant shape: ``shape.-1x8``."""
    return f"shape.{'x'.join(map(str, sizes))}"


def routed(output: str | None, what: str) -> str:
    """Return the name of a value that the routed form of a mixture of experts computes: ``y.moe.pairs``."""
    return f"{output}.moe.{what}"


def of_index(what: str | None, *index: int) -> str:
    """Return what a routed value is for one feature token, or one token and expert: ``[0,1].hidden``."""
    return f"{sliced('', *index)}.{what}"


def dequantize_node(weight: str | None) -> str:
    """Return the name of the node that dequantizes an int8 weight, by which a compiled layer is traced back to it."""
    return f"int8:{weight}"


def gemm_node(weight: str | None) -> str:
    """Return the name of the GEMM that reads an int8 weight, by which a compiled layer is traced back to it."""
    return f"gemm:{weight}"


def numbered_node(index: int, op_type: str) -> str:
    """Return the name of any other node of a graph whose GEMMs are named."""
    return f"{index}:{op_type}"


def step_node(name: str, step: Literal["cast", "dequantize", "to_fp16", "to_fp32"]) -> str:
    """Return the name of a node that only changes the type of a value: ``w/dequantize``."""
    return f"{name}/{step}"

"""Location of a traced node: op, module path and source line, for messages and explanations."""

from __future__ import annotations

import re

from torch import fx

from graphs.trace.trace_errors import TORCH_FILES


def location_of(node: fx.Node) -> str:
    """Return ``op in module.path (file.py:line)`` of a node."""
    target = node.target if node.op == "placeholder" else str(node.target).removeprefix("aten.")
    line = source_line(node)
    return f"{target} in {module_path(node) or 'the model'}{f' ({line})' if line else ''}"


def module_path(node: fx.Node) -> str:
    """Return the dotted path of the module a node was traced in, '' at the top."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return str(stack[-1][0]).removeprefix("L['self']").strip(".") if stack else ""


def source_line(node: fx.Node) -> str:
    """Return ``file.py:line`` in the model's source, '' if unknown."""
    found = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    # Use the innermost frame of the model's own code: a frame inside torch does not help its author.
    own = [(file, line) for file, line in found if not file.startswith(TORCH_FILES)] or found
    return f"{own[-1][0].rsplit('/', 1)[-1]}:{own[-1][1]}" if own else ""

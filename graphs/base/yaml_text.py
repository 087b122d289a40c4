"""Strict, plain YAML: the values of JSON, no tags, anchors or repeated keys, and one-line errors that say where."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from typing import Any

import yaml

from graphs.base.errors import UgsepError
from graphs.base.json_text import MAX_DEPTH

__all__ = ["read_yaml", "write_yaml"]

_MAX_BYTES = 1 << 20  # recipes have 2 KB; PyYAML reads 0.1 MB/s
_TAG = "tag:yaml.org,2002:"
_PLAIN = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}
#: The core schema of YAML 1.2: what looks like a date, ``1:30`` or ``yes`` is a string, and ``1e-5`` is a number.
_SCHEMA = {None: [(_TAG + name, re.compile(rf"(?:{pattern})\Z", re.ASCII)) for name, pattern in _PLAIN.items()]}


def read_yaml(text: str | bytes, location: str) -> Any:
    """Return the value of a YAML text; ``location`` names it in errors.

    Mappings with string keys, lists, strings, numbers, booleans and null; no tags, anchors or aliases.

    Raises:
        UgsepError: not such YAML, above 1 MB or nested too deeply, a key given twice, or a string with control
            characters; names line and column.
    """
    if len(text) > _MAX_BYTES:
        raise UgsepError(f"{location} has {len(text)} bytes, which is out of range (max {_MAX_BYTES}); shorten it")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return None if node is None else loader.construct_object(node, deep=True)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: bytes that are not UTF-8, numbers of 5,000 digits
        raise UgsepError(f"{location} is not YAML: {_reason(error)}; correct it") from error


def write_yaml(value: Any, width: int = 80) -> str:
    """Return a value of plain JSON types as YAML that :func:`read_yaml` reads back, mappings in their order."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=width, allow_unicode=True))


def _reason(error: Exception) -> str:
    """Return what PyYAML says without the text itself, of which its own message repeats a line."""
    if isinstance(error, yaml.reader.ReaderError):
        return f"{error.reason} at position {error.position}"
    if not isinstance(error, yaml.MarkedYAMLError):
        return str(error)
    said = ", ".join(part for part in (error.context, error.problem) if part)
    mark = error.problem_mark or error.context_mark
    return said if mark is None else f"{said} (line {mark.line + 1}, column {mark.column + 1})"


def _float(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


def _int(text: str) -> int:
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


_MAKE: dict[str, Callable[[str], Any]] = {
    "str": str, "null": lambda text: None, "bool": lambda text: text.lower() == "true", "int": _int, "float": _float,
}  # fmt: skip

_CONSTRUCTORS: dict[str | None, Any] = {
    **{_TAG + kind: yaml.SafeLoader.yaml_constructors[_TAG + kind] for kind in ("map", "seq")},
    **{_TAG + kind: lambda self, node, made=made: made(self.construct_scalar(node)) for kind, made in _MAKE.items()},
}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = _SCHEMA
    yaml_constructors = _CONSTRUCTORS

    def __init__(self, text: str | bytes) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise _refused(f"anchors and aliases ({event.anchor!a:.60}) are not accepted: write the value out", event)
        if getattr(event, "tag", None) is not None:
            raise _refused(f"tags ({event.tag!a:.60}) are not accepted: write a plain value", event)
        if self._depth >= MAX_DEPTH:
            raise _refused(f"nested more than {MAX_DEPTH} levels deep", event)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag != f"{_TAG}str":
                shown = f"{key.value!a:.60}" if isinstance(key, yaml.ScalarNode) else "a list or mapping"
                raise _refused(f"the key {shown} is not a string: put it in quotes", key)
            if key.value in seen:
                raise _refused(f"{key.value!a:.60} is given twice", key)
            seen.add(key.value)
        return node

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        value = super().construct_scalar(node)
        if any(unicodedata.category(c) in ("Cc", "Cs") for c in value if c not in "\n\t"):
            raise _refused(f"{value!a:.60} holds characters that cannot be printed", node)
        return value


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = _SCHEMA

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _refused(problem: str, at: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)

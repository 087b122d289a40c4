"""Strict reading of YAML texts: no key given twice, and one-line errors that say where."""

from __future__ import annotations

import unicodedata
from typing import Any

import yaml

from graphs.base.errors import UgsepError

__all__ = ["read_yaml"]


def read_yaml(text: str | bytes, location: str) -> Any:
    """Return the value of a YAML text; ``location`` names it in errors.

    Raises:
        UgsepError: not YAML, a key that is given twice, or a string with control characters; names line and column.
    """
    try:
        loader = _Loader(text)
        loader.name = location
        node = loader.get_single_node()
        return None if node is None else loader.construct_object(node, deep=True)  # deep: refuses recursive aliases
    # PyYAML leaks the others from dates and tagged values, such as 2020-13-45 and !!bool x.
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:
        raise UgsepError(f"{location} is not YAML: {' '.join(str(error).split())}; correct it") from error


class _Loader(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else key
            if name in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value!a:.60} is given twice", problem_mark=key.start_mark)
            seen.add(name)
        return node

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        value = super().construct_scalar(node)
        if isinstance(value, str) and any(unicodedata.category(c) in ("Cc", "Cs") for c in value if c not in "\n\t"):
            problem = f"{value!a:.60} holds characters that cannot be printed"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return value

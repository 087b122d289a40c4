"""Strict reading of JSON texts: no name given twice, and one-line errors that say where."""

from __future__ import annotations

import json
import re
from typing import Any

from graphs.base.config import unique_names
from graphs.base.errors import UgsepError

__all__ = ["MAX_DEPTH", "read_json"]

#: Levels of lists and mappings in a document: all of ours have fewer than 10, and Python's own limit is far above.
MAX_DEPTH = 64
_MOST_DIGITS = 4300  # that Python reads; its own refusal gives advice for programmers
_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*+"|[\[\]{}]', re.DOTALL)  # strings, to skip them, and brackets


def read_json(text: str | bytes, location: str, fix: str) -> Any:
    """Return the value of a JSON text; ``location`` names it in errors, and ``fix`` ends them.

    Raises:
        UgsepError: not JSON, nested too deeply, NaN or infinity, or a name that is given twice.
    """
    try:
        decoded = text.decode() if isinstance(text, bytes) else text
        _check_depth(decoded)
        return json.loads(decoded, object_pairs_hook=unique_names, parse_constant=_no_constant, parse_int=_integer)
    except ValueError as error:
        raise UgsepError(f"{location}: not valid JSON ({error}); {fix}") from error


def _integer(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _check_depth(text: str) -> None:
    """Refuse deep nesting before it is parsed: the parser and all later walks are recursive."""
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    depth = 0
    for found in _BRACKETS.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(found[0], 0)
        if depth > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} levels deep")

"""Strict reading of JSON texts: no name given twice, and one-line errors that say where."""

from __future__ import annotations

import json
import re
from typing import Any

from graphs.base.config import unique_names
from graphs.base.errors import UgsepError

__all__ = ["read_json"]

_MAX_DEPTH = 64
_ESCAPE = re.compile(r"\\.", re.DOTALL)
_NO_BRACKET = bytes(set(range(256)) - set(b'"[]{}'))
_STRING = re.compile(rb'"[^"]*"?')  # or the rest of the text, if it does not end
_INNERMOST = re.compile(rb"\[\]|\{\}")


def read_json(text: str | bytes, location: str, fix: str) -> Any:
    """Return the value of a JSON text; ``location`` names it in errors, and ``fix`` ends them.

    Raises:
        UgsepError: not JSON, NaN or infinity, nested more than 64 levels deep, or a name that is given twice.
    """
    try:
        decoded = text.decode() if isinstance(text, bytes) else text
        _check_depth(decoded)
        return json.loads(decoded, object_pairs_hook=unique_names, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise UgsepError(f"{location}: not valid JSON ({error}); {fix}") from error


def _check_depth(text: str) -> None:
    """Refuse deep nesting before anything recurses over it: escapes and strings go, then inner brackets 64 times."""
    plain = _ESCAPE.sub("", text) if "\\" in text else text
    left = _STRING.sub(b"", plain.encode(errors="replace").translate(None, _NO_BRACKET))
    for _ in range(_MAX_DEPTH):
        inner = _INNERMOST.sub(b"", left)
        if len(inner) == len(left):
            break
        left = inner
    # Brackets that do not match are the parser's to refuse, but it recurses into those that are open.
    if left.count(b"[") + left.count(b"{") > _MAX_DEPTH or (left and _INNERMOST.search(left)):
        raise ValueError(f"nested more than {_MAX_DEPTH} levels deep")


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")

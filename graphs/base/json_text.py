"""Strict reading of JSON texts: no name given twice, and one-line errors that say where."""

from __future__ import annotations

import json
from typing import Any

from graphs.base.config import unique_names
from graphs.base.errors import UgsepError

__all__ = ["read_json"]


def read_json(text: str | bytes, location: str, fix: str) -> Any:
    """Return the value of a JSON text; ``location`` names it in errors, and ``fix`` ends them.

    Raises:
        UgsepError: not JSON, NaN or infinity, or a name that is given twice.
    """
    try:
        decoded = text.decode() if isinstance(text, bytes) else text
        return json.loads(decoded, object_pairs_hook=unique_names, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise UgsepError(f"{location}: not valid JSON ({error}); {fix}") from error


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")

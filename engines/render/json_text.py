"""Standard JSON: NaN and infinities, which JSON cannot represent, become null."""

from __future__ import annotations

import json
from typing import Any

from graphs.base.finite import finite


def json_text(value: Any, indent: int | None = None) -> str:
    """Serialize mappings, lists, tuples and scalars to JSON; NaN and infinities become null."""
    return json.dumps(finite(value), indent=indent, allow_nan=False)

"""Seeded mutations of documents and files, and what a reader says to them."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

from graphs.base.errors import UgsepError

#: What no field of a document expects.
ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31, 2**63, 2**64, -(2**63) - 1, 10**400, 0.5, -0.5, 1e308, "", "a", "../x", "a.b",
    "\x1b[31m", "a\nb", "\ud800", "\u202e", "[/b]", "x" * 5_000, "keys", [], [[]], {}, {"": 0}, [None],
    [-1], ["a", 1],
)  # fmt: skip
#: What the syntax of JSON and YAML gives a meaning to, and what it does not allow.
PIECES = (
    "!!float ", "!!timestamp x", "!!int ''", "&a ", "*a", "<<: ", "? ", "- ", "\x00", "\u202e", "\ud800", "\x1b[31m",
    "|\n", "{", "}", "[", "]", "'", '"', ",", ":", ".inf", "NaN", "1e999", "%TAG ! x", "---", "\t", "\r", "\ufeff",
    "0x", "#", "@", "`", "\\", "\\u0000", "9" * 5_000, "[" * 2_000,
)  # fmt: skip


def mutated(document: Any, rng: random.Random) -> Any:
    """Return a copy of a JSON document with one place changed: removed, renamed, repeated, nested or made odd."""
    root = [copy.deepcopy(document)]
    parent, key = rng.choice(_places(root))
    change = rng.randrange(6)
    if change == 0:
        del parent[key]
    elif change == 1 and isinstance(parent, dict):
        parent[rng.choice([n for n in ODD if isinstance(n, str)])] = parent.pop(key)
    elif change == 2 and isinstance(parent, list):
        parent.append(parent[key])
    elif change == 3:
        for _ in range(rng.choice([1, 3, 500])):
            parent[key] = [parent[key]]
    elif change == 4 and type(parent[key]) in (int, float):
        parent[key] = parent[key] * rng.choice([-1, 0, 2, 1_000, 2**40])
    else:
        parent[key] = copy.deepcopy(rng.choice(ODD))
    return root[0] if root else None


def mutated_json(document: Any, rng: random.Random) -> str:
    """Return a document as JSON text, with one place or the text itself changed."""
    text = json.dumps(mutated(document, rng) if rng.random() < 0.8 else document)
    return mutated_text(text, rng) if rng.random() < 0.3 else text


def mutated_text(text: str, rng: random.Random) -> str:
    """Return a text with up to three pieces inserted or put in the place of a few characters, or cut short."""
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(text) + 1)
        text = text[:at] + rng.choice(PIECES) + text[at + rng.randint(0, 3) :]
    return text[: rng.randrange(len(text))] if rng.random() < 0.1 else text


def mutated_bytes(data: bytes, rng: random.Random, most: int | None = None) -> bytes:
    """Return bytes with a few of the first ``most`` changed, or bytes removed, added or cut off anywhere."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        change, at = rng.randrange(5), rng.randrange(max(1, min(most or len(changed), len(changed))))
        if change < 3 and changed:
            changed[at] = rng.choice([0, 255, changed[at] ^ 1 << rng.randrange(8), rng.randrange(256)])
        elif change == 3:
            changed[at : at + rng.randint(0, 9)] = rng.randbytes(rng.randint(0, 9))
        else:
            del changed[rng.randrange(len(changed) + 1) :]
    return bytes(changed)


def refusal(read: Callable[..., object], *args: Any, **options: Any) -> str:
    """Return the message with which a reader refuses its input, "" if it does not; any other error is raised."""
    try:
        read(*args, **options)
    except UgsepError as error:
        message = str(error)
    else:
        return ""
    assert message
    assert message.isprintable(), ascii(message)
    return message


def _places(value: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        found += [(value, key), *_places(item)]
    return found

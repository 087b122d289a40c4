"""Mutations of JSON documents: values of other types, odd texts, lost, repeated and renamed keys, deep nesting."""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Callable
from typing import Any

from benchmarks.reliability.fuzz.mutate.byte_level import mutate_bytes

__all__ = ["NUMBERS", "TEXTS", "mutate_json", "mutate_value"]

NUMBERS: tuple[Any, ...] = (
    *(0, 1, -1, 2, 7, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**62, 2**63 - 1, 2**63, -(2**63), 2**64, 10**30, 10**400),
    *(0.0, -0.0, 0.5, 1e-320, 1e308, float("nan"), float("inf"), float("-inf"), 3.0),
)
TEXTS = (
    "", " ", "x", "[/b]", "[bold]", "[link=x]", "<script>", "</script>", "\x1b[31m", "\x00", "a\nb", "\r", "\u202e",
    "\ud800", "é" * 50, "long" * 2000, "..", "../../etc/passwd", "/", "a/../../b", "a.b", "a[0]", "{}", "{x}", "%s",
    "user_index", "item_id", "nan", "null", "1e999", "0x10", "int8", "float32", "float64", "?", "\u2028", "\ufeff",
)  # fmt: skip
_TOKENS = (b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"\\u0000", b"\\ud800", b"null", b"NaN", b"1e999", b"-")


def mutate_json(text: bytes, rng: random.Random) -> bytes:
    """Return the text of a JSON document with one to three changes of its values, or of its bytes."""
    if rng.random() < 0.2:
        return mutate_bytes(text, rng, _TOKENS)
    document = json.loads(text)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        document = mutate_value(document, rng)
    return _written(document, rng)


def mutate_value(document: Any, rng: random.Random) -> Any:
    """Return a copy of nested dicts and lists in which one place is changed."""
    root = {"": copy.deepcopy(document)}
    places: list[tuple[Any, Any]] = []
    _collect(root, places)
    parent, key = rng.choice(places)
    rng.choice(_CHANGES)(parent, key, rng)
    return root.get("")


def _written(document: Any, rng: random.Random) -> bytes:
    text = json.dumps(document, ensure_ascii=rng.random() < 0.5, indent=rng.choice((None, 1)))
    if rng.random() < 0.05:  # a key given twice
        at = text.find("{") + 1
        text = text[:at] + '"version": 1, ' + text[at:]
    if rng.random() < 0.03:
        depth = rng.choice((50, 500, 5_000, 200_000))
        text = text.replace("null", "[" * depth + "]" * depth, 1)
    return text.encode("utf-8", "surrogatepass")


def _collect(value: Any, places: list[tuple[Any, Any]]) -> None:
    """List every place of a document: its container, and its key or number in it."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        places.append((value, key))
        _collect(inner, places)


def _number(parent: Any, key: Any, rng: random.Random) -> None:
    parent[key] = rng.choice(NUMBERS)


def _text(parent: Any, key: Any, rng: random.Random) -> None:
    parent[key] = rng.choice(TEXTS)


def _near(parent: Any, key: Any, rng: random.Random) -> None:
    value = parent[key]
    if isinstance(value, str):
        at = rng.randrange(len(value) + 1)
        parent[key] = value[:at] + rng.choice(TEXTS) + value[at:]
    elif isinstance(value, bool):
        parent[key] = not value
    elif isinstance(value, int | float):
        parent[key] = rng.choice(
            (value + 1, value - 1, -value, value * 2, _as_float(value), str(value), _as_float(value) * 1e6)
        )
    else:
        parent[key] = rng.choice((None, [], {}, [value], {"x": value}))


def _as_float(value: float) -> float:
    """Return a number as a float, infinite if it is an integer beyond them."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _plain(parent: Any, key: Any, rng: random.Random) -> None:
    parent[key] = rng.choice((None, True, False, [], {}, [[]], {"": {}}, [None]))


def _nest(parent: Any, key: Any, rng: random.Random) -> None:
    value = parent[key]
    for _ in range(rng.choice((1, 2, 30, 70, 100))):
        value = [value] if rng.random() < 0.5 else {"a": value}
    parent[key] = value


def _drop(parent: Any, key: Any, rng: random.Random) -> None:
    del parent[key]


def _repeat(parent: Any, key: Any, rng: random.Random) -> None:
    value = parent[key]
    if isinstance(value, list):
        value *= rng.choice((2, 3, 1000))
    elif isinstance(value, dict):
        value[rng.choice(TEXTS)] = copy.deepcopy(rng.choice([*value.values(), None]))
    elif isinstance(parent, list):
        parent.insert(key, value)


def _rename(parent: Any, key: Any, rng: random.Random) -> None:
    if isinstance(parent, dict) and key:
        parent[rng.choice((*TEXTS, key.upper(), f"{key} ", key[:-1]))] = parent.pop(key)


def _swap(parent: Any, key: Any, rng: random.Random) -> None:
    other = rng.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
    parent[key], parent[other] = parent[other], parent[key]


_CHANGES: tuple[Callable[[Any, Any, random.Random], None], ...] = (
    *(_number, _number, _text, _text, _near, _near, _near, _plain, _nest, _drop, _repeat, _rename, _swap),
)

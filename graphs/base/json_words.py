"""Values and types in the words of JSON, for errors about documents that were not written in Python."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec

__all__ = ["named_type", "rejection", "shown"]

_LONGEST = 60
_ONE_OF = {bool: "a boolean", int: "an integer", float: "a number", str: "a string", type(None): "null"}
_WORDS = {"bool": "boolean", "int": "integer", "float": "number", "str": "string"}
_TYPES = re.compile(r"`([a-z]+(?: \| [a-z]+)*)`")


def shown(value: Any) -> str:
    """Return a value as JSON writes it, in ASCII, its end cut off beyond 60 characters.

    Python refuses to print integers of more than 4,300 digits; they are described, as is what JSON does not have.
    """
    if type(value) is int and value.bit_length() > 200:
        return f"an integer of {value.bit_length()} bits"
    try:
        return f"{json.dumps(value):.{_LONGEST}}"
    except (TypeError, ValueError, RecursionError):
        return named_type(type(value))


def named_type(kind: Any) -> str:
    """Return the name of a type of values, with its article: ``a string``, ``null``, ``a list``."""
    if isinstance(kind, type) and issubclass(kind, dict):
        return "an object"
    if isinstance(kind, type) and issubclass(kind, list | tuple):
        return "a list"
    return _ONE_OF.get(kind) or f"a {getattr(kind, '__name__', kind)}"


def rejection(error: msgspec.MsgspecError) -> str:
    """Return msgspec's message with JSON's names of types in the place of Python's."""
    text = str(error)
    if not text.startswith("Expected `"):
        return text
    said, at, path = text.partition(" - at `$")
    return _TYPES.sub(lambda types: f"`{_words(types[1])}`", said) + at + path


def _words(types: str) -> str:
    return " | ".join(_WORDS.get(word, word) for word in types.split(" | "))

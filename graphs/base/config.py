"""Strict reading of JSON and YAML mappings into frozen dataclasses: recipes, model configs, policies, manifests."""

from __future__ import annotations

import dataclasses
import json
import re
import types
import unicodedata
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from graphs.base.errors import UgsepError, nearest
from graphs.base.json_words import named_type, shown

__all__ = ["check_plain", "parse", "to_mapping", "unique_names"]

T = TypeVar("T")
Path = tuple[str | int, ...]
_FIX = "correct the value"
_MAX_NUMBER = 1e300  # above any size, count or time, and safe from overflow
_MAX_INTEGER = 2**63 - 1  # what tensors, columns and counters hold
_STEP = re.compile(r"\.(\w+)|\[(\d+|\.\.\.)\]")


def parse(cls: type[T], values: Any, location: str, *, complete: bool = False, fix: str = _FIX) -> T:
    """Build the dataclass ``cls`` from ``values``; ``location`` names the document in errors, ``fix`` the remedy.

    Lists become tuples, and integers are accepted for floats; nothing else is converted. With ``complete``, fields
    that have a default must be given too.

    Raises:
        UgsepError: an unknown field (with the nearest name), a missing field, a value of the wrong type, a number
            beyond int64 or 1e300, NaN, a lone surrogate, or what the dataclass itself refuses; names the path of the
            field.
    """
    if not isinstance(values, Mapping):
        raise UgsepError(f"{location}: expected a mapping of settings, got {named_type(type(values))}")
    for path, problem in _wrong_names(cls, values, (), complete):
        raise UgsepError(f"{_named(location, path)}{problem}")
    for path, problem in _unusable(values, ()):
        raise UgsepError(f"{_named(location, path)} {problem}; {fix}")
    try:
        return msgspec.convert(values, cls, strict=True)
    except msgspec.ValidationError as error:
        path = _path_of(error, cls, values)
    except UgsepError as error:  # of a __post_init__
        raise UgsepError(f"{location}: {error}") from error
    found, kind = _value_at(values, path), _type_at(cls, path)
    raise UgsepError(f"{_named(location, path)} is {shown(found)}, not {_wanted(kind)}; {fix}")


def check_plain(value: Any, location: str) -> None:
    """Reject numbers and strings that none of our documents contain, at any depth.

    Raises:
        UgsepError: a number beyond int64 or 1e300, or a string or key with a control character, which could control
            the reader's terminal, or a lone surrogate.
    """
    if isinstance(value, Mapping):
        for key, item in value.items():
            check_plain(key, f"a name in {location}")
            check_plain(item, f"{location}.{ascii(key)[1:-1]:.60}")
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            check_plain(item, f"{location}[{i}]")
    elif _out_of_range(value):
        raise UgsepError(f"{location} is {shown(value)}, which is out of range")
    elif isinstance(value, str) and not value.isprintable():
        if any(unicodedata.category(c) in ("Cc", "Cs") for c in value):
            raise UgsepError(f"{location} is {shown(value)}, which holds characters that cannot be printed")


def _out_of_range(value: Any) -> bool:
    if type(value) is int:
        return not -_MAX_INTEGER - 1 <= value <= _MAX_INTEGER
    return type(value) is float and not abs(value) < _MAX_NUMBER


def _unusable(value: Any, path: Path) -> Iterator[tuple[Path, str]]:
    """Yield the path of every number and string that no file of ours can hold, and the problem."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if isinstance(key, str):
                yield from _unusable(key, (*path, key))
            yield from _unusable(item, (*path, str(key)))
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _unusable(item, (*path, i))
    elif _out_of_range(value):
        yield path, f"is {shown(value)}, which is out of range"
    elif isinstance(value, str) and not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
        yield path, f"is {shown(value)}, which is not a valid text"


def unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object (an ``object_pairs_hook``), since parsers disagree on which of two equal names counts.

    Raises:
        ValueError: a name occurs twice.
    """
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"'{twice:.60}' is given twice")
    return made


def to_mapping(config: Any) -> dict[str, Any]:
    """Return a dataclass as plain JSON types, the inverse of ``parse``."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


def _fields(cls: Any) -> Mapping[str, tuple[Any, bool]]:
    """Return the type of every field of a dataclass, and whether it is required."""
    hints = _hints(cls)
    missing = dataclasses.MISSING
    return {
        f.name: (hints[f.name], f.default is missing and f.default_factory is missing)
        for f in dataclasses.fields(cls)
    }


_hints = cache(get_type_hints)


def _members(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (types.UnionType, Union) else (kind,)


def _wrong_names(kind: Any, value: Any, path: Path, complete: bool) -> Iterator[tuple[Path, str]]:
    """Yield the path of every unknown or missing field, and the problem."""
    for member in _members(kind):
        if dataclasses.is_dataclass(member) and isinstance(value, Mapping):
            fields = _fields(member)
            for key in value:
                if key not in fields:
                    yield path, f": unknown setting '{ascii(str(key))[1:-1]:.60}'{nearest(str(key), fields)}"
            for name, (inner, required) in fields.items():
                if name in value:
                    yield from _wrong_names(inner, value[name], (*path, name), complete)
                elif required or complete:
                    yield path, f": '{name}' is missing; add it"
        elif get_origin(member) is tuple and isinstance(value, list | tuple):
            for i, item in enumerate(value):
                yield from _wrong_names(get_args(member)[0], item, (*path, i), complete)
        elif get_origin(member) is Mapping and isinstance(value, Mapping):
            for name, item in value.items():
                yield from _wrong_names(get_args(member)[1], item, (*path, str(name)), complete)


def _path_of(error: msgspec.ValidationError, cls: Any, values: Any) -> Path:
    """Return the path of the rejected value; msgspec does not name the key of a mapping, so try each."""
    path: Path = ()
    for name, index in _STEP.findall(str(error).rpartition(" - at `$")[2]):
        if index != "...":
            path += (int(index) if index else name,)
            continue
        inside, kind = _value_at(values, path), _type_at(cls, path)
        for key, item in inside.items():
            try:
                msgspec.convert(item, get_args(kind)[1], strict=True)
            except msgspec.ValidationError:
                path += (key,)
                break
    return path


def _value_at(values: Any, path: Path) -> Any:
    for step in path:
        values = values[step]
    return values


def _type_at(kind: Any, path: Path) -> Any:
    for step in path:
        kind = next(
            m for m in _members(kind) if dataclasses.is_dataclass(m) or get_origin(m) in (tuple, Mapping, dict)
        )
        if dataclasses.is_dataclass(kind):
            kind = _fields(kind)[str(step)][0]
        else:
            kind = get_args(kind)[0 if get_origin(kind) is tuple else 1]
    return kind


def _wanted(kind: Any) -> str:
    """Describe the values a type accepts, in JSON terms."""
    words = []
    for member in _members(kind):
        if get_origin(member) is Literal:
            words.append(f"one of {', '.join(map(str, get_args(member)))}")
        elif get_origin(member) is tuple:
            words.append("a list")
        elif dataclasses.is_dataclass(member) or get_origin(member) in (Mapping, dict):
            words.append("an object")
        else:
            words.append(named_type(member))
    return " or ".join(words)


def _named(location: str, path: Path) -> str:
    """Return the name of a field: ``recipe: serving.threads``, ``manifest: engines[0].built``."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{ascii(step)[1:-1]:.60}" for step in path)
    return f"{location}: {text.lstrip('.')}" if text else location

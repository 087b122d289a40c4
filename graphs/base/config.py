"""Strict reading of configuration mappings into frozen dataclasses."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import dacite

from graphs.base.errors import UgsepError, nearest

T = TypeVar("T")


def parse(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Build the dataclass ``cls`` from ``values``; ``where`` names the file or field in errors.

    Lists become tuples and integers are accepted for floats, as YAML and JSON write them.

    Raises:
        UgsepError: unknown key (with the nearest known one), missing key, or a value of the wrong type.
    """
    if not isinstance(values, Mapping):
        raise UgsepError(f"{where}: expected a mapping of settings, got {type(values).__name__}")
    _check_names(cls, values, where)
    settings = dacite.Config(strict=True, cast=[tuple], type_hooks={float: _as_float})
    try:
        return dacite.from_dict(cls, dict(values), settings)
    except dacite.WrongTypeError as error:
        if get_origin(error.field_type) is not Literal:
            raise UgsepError(f"{where}: {str(error).rstrip('.')}; correct the value") from error
        choices = ", ".join(map(str, get_args(error.field_type)))
        raise UgsepError(f"{where}: {error.field_path} is '{error.value}'; give one of {choices}") from error
    except dacite.DaciteError as error:
        raise UgsepError(f"{where}: {str(error).rstrip('.')}; correct the value") from error


def _check_names(cls: Any, values: Mapping[str, Any], where: str) -> None:
    """Refuse an unknown setting, also one of a section inside, with the nearest name there."""
    hints = get_type_hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}
    for key, value in values.items():
        if key not in known:
            raise UgsepError(f"{where}: unknown setting '{key}'{nearest(str(key), known)}")
        if dataclasses.is_dataclass(hints[key]) and isinstance(value, Mapping):
            _check_names(hints[key], value, f"{where}: {key}")


def _as_float(value: Any) -> Any:
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def to_mapping(config: Any) -> dict[str, Any]:
    """Return a dataclass as plain JSON types, the inverse of ``parse``."""
    plain = dataclasses.asdict(config)
    return {k: _plain(v) for k, v in plain.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value

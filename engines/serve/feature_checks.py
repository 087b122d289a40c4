"""Checks of a request's features before they reach an engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from engines.backends.built_engine import TensorSpec
from engines.backends.contract import Array
from graphs.base.errors import UgsepError, nearest
from graphs.base.names import Side

__all__ = ["FeatureChecks", "check_array", "check_ids", "check_mapping"]


@dataclass(frozen=True)
class FeatureChecks:
    """The expected features of one side: its engine's inputs, and the rows of each id input's embedding table."""

    side: Side
    inputs: tuple[TensorSpec, ...]
    table_rows: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of the features, in the order of the engine's inputs."""
        return tuple(spec.name for spec in self.inputs)

    @cached_property
    def _own_tables(self) -> dict[str, int]:
        return {name: self.table_rows[name] for name in self.names if name in self.table_rows}

    def rows(self, given: Mapping[str, Array]) -> int:
        """Check names, rows, finite values and ids, and return the number of rows; the runner checks dtypes.

        Raises:
            UgsepError: a missing or unknown feature, no rows, differing numbers of rows, a non-finite value, or an id
                outside its table.
        """
        check_mapping(self.side, given)
        for name in self.names:
            if name not in given:
                raise self._missing(name)
        rows = -1
        for name, value in given.items():
            if name not in self.names:
                raise self._unknown(name)
            check_array(self.side, name, value)
            if value.ndim == 0 or value.shape[0] == 0:
                raise UgsepError(f"{self.side} feature '{name}' has no rows; give at least one")
            if rows not in (-1, value.shape[0]):
                raise UgsepError(f"{self.side} feature '{name}' has {value.shape[0]} rows, others have {rows}")
            rows = value.shape[0]
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                raise UgsepError(f"{self.side} feature '{name}' has a NaN or infinite value; clean it before scoring")
        check_ids(self.side, given, self._own_tables)
        return rows

    def in_order(self, given: Mapping[str, Array]) -> list[Array]:
        """Return the arrays in input order; only names are checked, which suffices for a cache lookup.

        Raises:
            UgsepError: a missing or unknown feature, or one that is not an array of numbers.
        """
        check_mapping(self.side, given)
        arrays = []
        for name in self.names:
            value = given.get(name)
            if value is None:
                raise self._missing(name)
            check_array(self.side, name, value)
            arrays.append(value)
        if len(given) != len(arrays):
            raise self._unknown(next(name for name in given if name not in self.names))
        return arrays

    def _missing(self, name: str) -> UgsepError:
        known = ", ".join(self.names)
        return UgsepError(f"{self.side} feature '{name}' is missing; the {self.side} engine takes {known}")

    def _unknown(self, name: object) -> UgsepError:
        return UgsepError(f"unknown {self.side} feature '{name}'{nearest(str(name), self.names)}")


def check_mapping(side: str, given: object) -> None:
    """Reject features that are not a mapping.

    Raises:
        UgsepError: with the type.
    """
    if not isinstance(given, Mapping):
        raise UgsepError(f"{side} features are a {type(given).__name__}; give a mapping of names to NumPy arrays")


def check_array(side: str, name: str, value: object) -> None:
    """Reject anything but a NumPy array of numbers, which would fail deep inside or be misread.

    Raises:
        UgsepError: with the feature and its type or dtype.
    """
    if not isinstance(value, np.ndarray) or isinstance(value, np.ma.MaskedArray):
        raise UgsepError(f"{side} feature '{name}' is a {type(value).__name__}; give a NumPy array")
    if value.dtype.kind not in "fiub" or not value.dtype.isnative:
        raise UgsepError(f"{side} feature '{name}' has dtype {value.dtype}; give numbers in native byte order")


def check_ids(side: str, given: Mapping[str, Array], table_rows: Mapping[str, int]) -> None:
    """Reject an id outside its embedding table.

    Raises:
        UgsepError: with the feature, the id, and the largest valid id.
    """
    for name, rows in table_rows.items():
        ids = given.get(name)
        if ids is None or ids.dtype != np.int64 or ids.size == 0:
            continue
        # Viewed as unsigned, a negative id is huge, so one pass finds both errors; a single id needs no pass.
        sound = 0 <= ids.item() < rows if ids.size == 1 else ids.view(np.uint64).max() < rows
        if not sound:
            flat = np.asarray(ids).ravel()  # a subclass may index otherwise
            wrong = int(flat[(flat < 0) | (flat >= rows)][0])
            raise UgsepError(
                f"{side} feature '{name}' has id {wrong}; its table has {rows} rows, valid ids are 0 to {rows - 1}"
            )

"""``report.json`` as its readers need it: read as untrusted input, the figures they use checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from engines.bundle.document import read_document
from graphs.base.config import check_plain
from graphs.base.errors import UgsepError
from graphs.base.json_words import rejection

__all__ = ["REPORT", "read_report"]

REPORT = "report.json"
_FIX = "build the bundle again"
_Count = Annotated[int, Meta(ge=0, le=1 << 62)]
_Positive = Annotated[float, Meta(gt=0)]


@dataclass(frozen=True)
class _Target:
    """A gate; a figure that is not finite is null."""

    name: str
    value: float | None
    bound: float | None
    passed: bool


@dataclass(frozen=True)
class _Percentiles:
    p50: float
    p90: float
    p99: float


@dataclass(frozen=True)
class _Latency:
    candidates: Annotated[int, Meta(ge=1)]
    speedup: _Positive
    limit: _Positive
    request: _Percentiles


@dataclass(frozen=True)
class _Weights:
    fp32_bytes: _Count
    quantized_bytes: _Count


@dataclass(frozen=True)
class _Auc:
    fp32: Mapping[str, float | None]
    quantized: Mapping[str, float | None]


@dataclass(frozen=True)
class _Cost:
    flops: _Count
    weight_bytes: _Count


@dataclass(frozen=True)
class _Split:
    user: _Cost
    item: _Cost
    full: _Cost
    state_bytes_per_user: _Count


@dataclass(frozen=True)
class _Report:
    """The fields that a command or a page reads; a report has more, for people."""

    model: str
    backend: str
    passed: bool
    targets: tuple[_Target, ...]
    latency: _Latency
    weights: _Weights
    auc: _Auc
    split: _Split


def read_report(bundle: Path) -> dict[str, Any]:
    """Return a bundle's ``report.json``; fields that nothing reads are not checked.

    Raises:
        UgsepError: the report is missing, not a JSON object, or a field that commands read is missing or of another
            type.
    """
    document = read_document(bundle, REPORT, f"; {_FIX}", _FIX)
    try:
        check_plain(document, "report")
        msgspec.convert(document, _Report, strict=True)
    except msgspec.ValidationError as error:
        raise UgsepError(f"{bundle / REPORT}: {rejection(error)}; {_FIX}") from error
    except UgsepError as error:
        raise UgsepError(f"{bundle / REPORT}: {error}; {_FIX}") from error
    return document

"""A factory per model, for ``ugsep build benchmarks/model_zoo/factories.py:NAME``; ``list`` shows the names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from benchmarks.model_zoo.packages import table


def __getattr__(name: str) -> Callable[[], tuple[nn.Module, dict[str, Any]]]:
    if name not in table.names():
        raise AttributeError(name)

    def factory() -> tuple[nn.Module, dict[str, Any]]:
        model = table.make(name)
        return model.module, model.example

    return factory


def __dir__() -> list[str]:
    return sorted(table.names())

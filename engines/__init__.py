"""Backends, bundle, gates, report and the runtime that serves user and item engines."""

from typing import TYPE_CHECKING

__all__ = ["Ranker"]

if TYPE_CHECKING:
    from engines.serve.ranker import Ranker
else:

    def __getattr__(name):  # so that importing a module of engines does not load the runtime
        if name != "Ranker":
            raise AttributeError(f"module 'engines' has no attribute {name!r}")
        from engines.serve.ranker import Ranker

        return Ranker

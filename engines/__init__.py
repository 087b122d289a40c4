"""Backends, bundle, gates, report and the runtime that serves user and item engines."""

from engines.serve.ranker import Ranker

__all__ = ["Ranker"]

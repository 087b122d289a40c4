"""Requests on disk: what a file must hold, and how it is read."""

__all__ = ["hash", "readers", "spec", "synthetic"]

"""Servers and proxies as processes of their own, pinned to a core."""

__all__ = ["floor", "ours", "process", "rivals", "whole_model"]

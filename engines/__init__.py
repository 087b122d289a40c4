"""Backends, bundle, gates, report and the runtime that serves user and item engines."""

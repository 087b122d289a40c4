"""Requests on disk: what a file must hold, and how it is read."""

"""Mutated requests over HTTP and gRPC: no answer may be a server error, no score may be wrong."""

__all__: list[str] = []

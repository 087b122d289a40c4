"""Mutated requests over HTTP and gRPC: no answer may be a server error, no score may be wrong."""

__all__ = ["grpc_requests", "http_requests"]

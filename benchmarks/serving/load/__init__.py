"""The load generator: prebuilt requests, arrivals, and an account of every answer."""

__all__ = ["arrivals", "grpc_load", "http_load", "one_by_one", "pool", "tally", "wire"]

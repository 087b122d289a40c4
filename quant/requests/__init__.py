"""Requests on disk: what a file must hold, and how it is read."""

from quant.requests.readers import read_requests
from quant.requests.spec import Request, request_spec

__all__ = ["Request", "read_requests", "request_spec"]

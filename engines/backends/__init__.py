"""One folder per runtime behind one contract."""

from engines.backends.table import backend_names, find_backend

__all__ = ["backend_names", "find_backend"]

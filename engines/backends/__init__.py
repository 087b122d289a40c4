"""One folder per runtime behind one contract."""

__all__ = ["build", "built_engine", "checks", "contract", "engine_spec", "graph_io", "host", "lacking", "table"]

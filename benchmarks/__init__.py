"""Measurements behind the documentation; not part of the distribution."""

from engines.cli.telemetry import disable_telemetry

__all__ = ["experts", "model_zoo", "score", "split", "streaming"]

disable_telemetry()  # before any of them imports onnxruntime

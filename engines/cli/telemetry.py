"""Keep ONNX Runtime from reporting what it runs."""

from __future__ import annotations

import os

#: Read when onnxruntime is first imported; without it, 1.29 and later keep a device id and send usage events.
TELEMETRY_OFF = "ORT_DISABLE_TELEMETRY"


def disable_telemetry() -> None:
    """Disable ONNX Runtime's telemetry in this process, unless the variable is already set.

    For command lines, before onnxruntime is imported. A server that embeds a ``Ranker`` decides for itself.
    """
    os.environ.setdefault(TELEMETRY_OFF, "1")

"""Keep ONNX Runtime from reporting what it runs."""

from __future__ import annotations

import os

#: Read when onnxruntime is first imported; from 1.29 on it otherwise keeps a device id and sends usage events.
TELEMETRY_OFF = "ORT_DISABLE_TELEMETRY"


def disable_telemetry() -> None:
    """Switch ONNX Runtime's telemetry off for this process, unless the user has decided about it.

    For command lines, before onnxruntime is imported. A server that embeds a ``Ranker`` decides for itself.
    """
    os.environ.setdefault(TELEMETRY_OFF, "1")

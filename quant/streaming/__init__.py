"""Quantization of models larger than memory."""

from quant.streaming.stream import Streamed, stream_graphs

__all__ = ["Streamed", "stream_graphs"]

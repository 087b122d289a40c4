"""All peers by name. To add one, write a function ``(PeerSource, threads) -> Bind`` and give it a line here."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from engines.bench.baselines import onnx_runtime, openvino, pytorch
from engines.bench.baselines.contract import Peer
from graphs.base.errors import UgsepError, nearest

PEERS: Mapping[str, Peer] = {
    "pytorch": Peer("fp32", "eager, inference mode", pytorch.eager),
    "torch-compile": Peer("fp32", "static shapes, frozen weights", pytorch.compiled),
    "onnxruntime": Peer("fp32", "the graph as exported, all optimisations", onnx_runtime.exported),
    "onnxruntime-lowered": Peer("fp32", "one GEMM per token, as our engines", onnx_runtime.lowered),
    "onnxruntime-int8": Peer("w8a8-dynamic", "quantize_dynamic of the exported graph", onnx_runtime.dynamic_int8),
    "onnxruntime-int8-lowered": Peer(
        "w8a8-dynamic", "quantize_dynamic per channel, one GEMM per token", onnx_runtime.lowered_dynamic_int8
    ),
    "openvino-fp32": Peer("fp32", "latency mode, f32", partial(openvino.hinted, "f32")),
    "openvino-bf16": Peer("bf16", "latency mode, bf16", partial(openvino.hinted, "bf16")),
    "openvino-fp16": Peer("fp16", "latency mode, f16", partial(openvino.hinted, "f16")),
    "openvino-int8": Peer(
        "w8a8-dynamic", "int8 compressed weights, its own dynamic quantization", openvino.compressed_int8
    ),
}


def choose_peers(names: str) -> tuple[str, ...]:
    """Return peer names from ``all``, ``none`` or a comma-separated list.

    Raises:
        UgsepError: an unknown name; the message carries the nearest one.
    """
    if names == "all":
        return tuple(PEERS)
    chosen = () if names == "none" else tuple(n.strip() for n in names.split(",") if n.strip())
    for name in chosen:
        if name not in PEERS:
            raise UgsepError(f"unknown peer '{name}'{nearest(name, PEERS)}")
    return chosen

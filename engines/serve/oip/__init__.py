"""The Open Inference Protocol, version 2, over HTTP and gRPC."""

__all__ = [
    "grpc_codec",
    "grpc_server",
    "http",
    "infer_job",
    "layout",
    "metadata",
    "open_inference_pb2",
    "refusals",
    "request",
    "signature",
]

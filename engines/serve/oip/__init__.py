"""The Open Inference Protocol, version 2, over HTTP and gRPC."""

__all__ = ["grpc_server", "http", "http_infer", "open_inference_pb2", "signature"]

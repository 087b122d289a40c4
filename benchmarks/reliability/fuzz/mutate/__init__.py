"""Mutations of files, one module a format: parts of a valid file are changed as a whole, or its bytes."""

__all__ = ["byte_level", "json_values", "onnx_graphs", "request_files", "safetensors_files", "yaml_text"]

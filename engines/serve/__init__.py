"""The serving runtime: no torch, no ONNX tooling."""

"""From an ONNX file to an engine, never twice."""

from engines.compile.compile import EnginePlan, compile_engine

__all__ = ["EnginePlan", "compile_engine"]

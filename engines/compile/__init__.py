"""From an ONNX file to an engine, through the engine cache."""

from engines.compile.compile import EnginePlan, compile_engine

__all__ = ["EnginePlan", "compile_engine"]

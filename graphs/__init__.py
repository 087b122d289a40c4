"""Models, UG-Sep, the splitter and its cost model; independent of ONNX and of any runtime."""

__all__ = ["base", "checkpoint", "explain", "models", "split", "trace"]

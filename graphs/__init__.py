"""Models, UG-Sep, the splitter and its costs; knows neither ONNX nor runtimes."""

__all__: list[str] = []

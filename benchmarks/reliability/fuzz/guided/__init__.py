"""Coverage-guided fuzzing of the parsers: libFuzzer keeps the inputs that reach new code, one process a parser."""

__all__ = ["command", "figures", "parser"]

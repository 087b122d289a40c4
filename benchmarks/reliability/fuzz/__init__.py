"""Mutated files and options against the real commands: no traceback, no hang, no wrong score that passes."""

__all__ = ["attack", "campaign", "inputs", "judge", "programs", "sound_texts", "worker"]

"""OpenVINO on CPUs."""

__all__ = ["backend", "library"]

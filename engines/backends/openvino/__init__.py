"""OpenVINO on CPUs."""

__all__: list[str] = []

"""A bundle that is loaded for serving."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engines.bundle.manifest import Manifest
from engines.serve.ranker import Ranker

__all__ = ["ServedBundle"]


@dataclass(frozen=True)
class ServedBundle:
    """One version of the model: ``version`` is the start of the sha256 of its manifest, 12 hex digits."""

    name: str
    version: str
    root: Path
    manifest: Manifest
    ranker: Ranker

    @property
    def user_model(self) -> str:
        """The name under which the user graph can be called to warm a user."""
        return f"{self.name}.user"

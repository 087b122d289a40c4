"""A bundle that is loaded for serving."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engines.bundle.fixture_file import Fixtures
from engines.bundle.manifest import Manifest
from engines.serve.ranker import Ranker

__all__ = ["ServedBundle"]


@dataclass(frozen=True)
class ServedBundle:
    """One version of the model: ``version`` is the start of the sha256 of its manifest, 12 hex digits.

    ``report`` is the bundle's ``report.json``, ``loaded_at`` the time at which it could serve, in Unix seconds,
    ``fixtures`` the requests that it was proven with.
    """

    name: str
    version: str
    root: Path
    manifest: Manifest
    ranker: Ranker
    report: Mapping[str, Any] = field(default_factory=dict)
    loaded_at: float = 0.0
    fixtures: Fixtures = field(default_factory=lambda: Fixtures(()))

    @property
    def user_model(self) -> str:
        """The name under which the user graph can be called to warm a user."""
        return f"{self.name}.user"

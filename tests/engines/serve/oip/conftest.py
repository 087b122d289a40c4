"""One server over the tiny bundle for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engines.serve.oip.local_server import LocalServer, serving


@pytest.fixture(scope="session")
def server(built_bundle: Path) -> Iterator[LocalServer]:
    with serving(built_bundle, max_body=1 << 20, body_timeout=2.0) as made:
        yield made
    assert made.bugs == []

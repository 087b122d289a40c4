"""The example as a user runs it: two servers, Debian's HAProxy, one server killed."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner

from examples.serving.replicas import main

pytestmark = pytest.mark.skipif(shutil.which("haproxy") is None, reason="haproxy is not installed")


def free_base() -> int:
    """Return a port such that those of the replicas, 10 and 20 higher, are free too."""
    for base in range(20_000, 60_000, 31):
        try:
            for port in (base, base + 10, base + 20):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return base
    raise AssertionError("no free ports")


def test_every_request_is_answered_although_a_replica_dies(built_bundle: Path, tmp_path: Path) -> None:
    arguments = [str(built_bundle), "--port", str(free_base()), "--requests", "60", "--work", str(tmp_path)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, (result.output, [p.read_text() for p in tmp_path.glob("*.log")])
    assert result.output.startswith("60 of 60 requests answered with the expected scores")


def test_a_missing_bundle_is_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, [str(tmp_path / "none"), "--work", str(tmp_path)])
    assert result.exit_code == 2
    assert "no manifest.json" in result.stderr
    assert result.stderr.count("\n") == 1

"""Other servers in front of a bundle's engines, as processes."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from benchmarks.serving.load.http_load import Address
from benchmarks.serving.rivals.spec import write_spec
from benchmarks.serving.rivals.triton import triton_command, write_repository
from benchmarks.serving.servers.process import HOST, Server, free_ports
from engines.bundle.manifest import read_manifest

CACHE_BYTES = 64 << 20
_KSERVE = Path(__file__).parents[1] / "rivals" / "kserve_server.py"


def triton_server(bundle: Path, installed: Path, work: Path, cores: Collection[int]) -> Server:
    """Return Tritonserver with both models of ``write_repository``, not started."""
    repository = (work / "repository").resolve()
    write_repository(bundle, read_manifest(bundle), repository, CACHE_BYTES)
    http, grpc = free_ports(2)
    found = triton_command(installed.resolve(), repository, http, grpc, CACHE_BYTES)
    return Server(
        found.arguments, Address(HOST, http), Address(HOST, grpc), work / "triton.log", cores, found.environment
    )


def kserve_server(bundle: Path, installed: Path, work: Path, cores: Collection[int]) -> Server:
    """Return KServe's server, not started; it says that it is ready on '/v2/health/ready' too."""
    manifest = read_manifest(bundle)
    folder = (work / "kserve-engines").resolve()
    write_spec(bundle, manifest, folder, CACHE_BYTES)
    http, grpc = free_ports(2)
    python = installed.resolve() / "env" / "bin" / "python"
    command = (str(python), str(_KSERVE), str(folder), manifest.model, str(http), str(grpc))
    return Server(command, Address(HOST, http), Address(HOST, grpc), work / "kserve.log", cores)

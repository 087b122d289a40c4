"""``python -m benchmarks.serving.servers.whole_main BUNDLE RUNTIME FOLDER``: the whole model behind our server."""

from __future__ import annotations

import dataclasses
import signal
import sys
import threading
from pathlib import Path

import click

from benchmarks.serving.servers.whole_model import VERSION, load_whole, whole_ranker
from engines.serve.observe.log import make_log
from engines.serve.server import start
from engines.serve.settings import ServeSettings


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("runtime")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--http-port", type=int, required=True)
@click.option("--grpc-port", type=int, required=True)
@click.option("--queue", type=int, default=64)
@click.option("--admin-socket", type=click.Path(path_type=Path))
def main(
    bundle: Path, runtime: str, folder: Path, http_port: int, grpc_port: int, queue: int, admin_socket: Path | None
) -> None:
    """Serve until SIGTERM: start with the bundle's engines, then switch to the whole model."""
    settings = ServeSettings(
        bundle,
        http_port=http_port,
        grpc_port=grpc_port,
        queue=queue,
        watch_seconds=0,
        drain_seconds=0,
        admin_socket=admin_socket,
    )
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    log, _ = make_log(sys.stderr, False, 0.0)
    server = start(settings, log)
    slot = server.context.slot
    served = slot.current()
    ranker = whole_ranker(served.manifest, load_whole(bundle, runtime, folder))
    slot.switch(dataclasses.replace(served, ranker=ranker, version=VERSION))
    print("whole model", flush=True)
    while not ended.wait(0.5):
        continue
    server.stop()


if __name__ == "__main__":
    main()

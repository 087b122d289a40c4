"""What is said of a server's process: descriptors that leak are seen, connections that come and go are not."""

from __future__ import annotations

import http.client
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.serving.load.http_load import Address
from benchmarks.serving.servers.process import HOST, Server, free_ports, started

LEAKING = """
import http.server, sys, tempfile
kept = []
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/leak":
            kept.append(tempfile.TemporaryFile())
        self.send_response(200)
        self.end_headers()
    def log_message(self, *_):
        return None
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def get(address: Address, path: str) -> int:
    connection = http.client.HTTPConnection(address.host, address.port, timeout=10)
    connection.request("GET", path)
    status = connection.getresponse().status
    connection.close()
    return status


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    address = Address(HOST, free_ports(1)[0])
    with started(
        Server([sys.executable, "-c", LEAKING, str(address.port)], address, None, tmp_path / "log"), "/"
    ) as found:
        yield found


def test_connections_that_come_and_go_are_not_descriptors_of_the_server(server: Server) -> None:
    alone = server.descriptors()
    ended = threading.Event()
    made = 0

    def come_and_go() -> None:
        nonlocal made
        while not ended.is_set():
            get(server.http, "/")
            made += 1

    threads = [threading.Thread(target=come_and_go) for _ in range(4)]
    for thread in threads:
        thread.start()
    counts = [server.descriptors() for _ in range(40)]
    ended.set()
    for thread in threads:
        thread.join()
    assert made > 40
    # A socket is open for a moment before it is connected and after it is closed: now and then one is seen then.
    assert sorted(counts)[20] == alone
    assert max(counts) <= alone + 4


def test_leaks_are_counted(server: Server) -> None:
    alone = server.descriptors()
    for _ in range(3):
        get(server.http, "/leak")
    assert server.descriptors() == alone + 3

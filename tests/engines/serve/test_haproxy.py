"""The proxy's configuration, and Debian's HAProxy in front of servers that die, drain and refuse."""

from __future__ import annotations

import multiprocessing
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner

from engines.bundle.manifest import read_manifest
from engines.cli.main import main
from engines.serve.haproxy import Proxy, Replica, haproxy_config, largest_request, replicas_of
from graphs.base.errors import UgsepError

needs_haproxy = pytest.mark.skipif(shutil.which("haproxy") is None, reason="haproxy is not installed")
PROXY = Proxy("127.0.0.1", 8000, 8001, largest_request=200_000)
BODY = b"x" * 100_000  # larger than HAProxy's usual buffer of 16 KiB


def checked(folder: Path, text: str) -> None:
    file = folder / "haproxy.cfg"
    file.write_text(text)
    done = subprocess.run(["haproxy", "-c", "-f", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr


@needs_haproxy
def test_haproxy_accepts_the_configuration(tmp_path: Path) -> None:
    checked(tmp_path, haproxy_config(PROXY, replicas_of(PROXY, 3), ["ugsep serve A\nglobal", "ugsep serve B"]))
    without = Proxy("0.0.0.0", 8000, None, largest_request=10)
    checked(tmp_path, haproxy_config(without, replicas_of(without, 1)))
    six = Proxy("::1", 8000, 8001, largest_request=10)
    checked(tmp_path, haproxy_config(six, replicas_of(six, 2)))


def test_ports_of_replicas_follow_those_of_the_proxy() -> None:
    assert replicas_of(PROXY, 2) == (Replica("127.0.0.1", 8010, 8011), Replica("127.0.0.1", 8020, 8021))
    everywhere = Proxy("0.0.0.0", 80, None, largest_request=10)
    assert replicas_of(everywhere, 1) == (Replica("127.0.0.1", 90, None),)


@pytest.mark.parametrize(
    ("proxy", "count", "line"),
    [
        (PROXY, 0, "0 replicas; give 1 to 256"),
        (Proxy("h", 65530, None, 1), 1, "port 65540"),
        (Proxy("h", 8000, 8010, 1), 2, "port 8010 would be taken twice"),
    ],
)
def test_bad_ports_are_one_line(proxy: Proxy, count: int, line: str) -> None:
    with pytest.raises(UgsepError, match=line):
        replicas_of(proxy, count)


def test_a_host_cannot_add_directives() -> None:
    with pytest.raises(UgsepError, match="neither a name nor an address"):
        haproxy_config(Proxy("127.0.0.1:1\n    stats enable", 8000, None, 1), replicas_of(PROXY, 1))
    with pytest.raises(UgsepError, match="no gRPC port"):
        haproxy_config(PROXY, [Replica("127.0.0.1", 1, None)])
    with pytest.raises(UgsepError, match="no replicas"):
        haproxy_config(PROXY, [])


def test_the_buffer_holds_the_largest_request(built_bundle: Path) -> None:
    manifest = read_manifest(built_bundle)
    # user: id, 3 floats, 5 ids; item: id, 7 and 4 floats; 64 candidates, and as many users as the engine takes
    users = max(p.users.max for e in manifest.engines if e.built.side == "item" for p in e.built.profiles)
    assert largest_request(manifest) == users * (8 + 12 + 40) + 64 * (8 + 28 + 16 + 8) + 8192
    for size, buffer in ((10, 131072), (131072, 131072), (131073, 262144), (10**9, 4 << 20)):
        proxy = Proxy("127.0.0.1", 8000, 8001, largest_request=size)
        assert f"tune.bufsize {buffer}\n" in haproxy_config(proxy, replicas_of(proxy, 1))


class Origin(ThreadingHTTPServer):
    """A server that answers with its own port, and does to the next ``POST`` what ``mood`` says."""

    daemon_threads = True
    request_queue_size = 256  # of connections that wait; the usual 5 would refuse what a real server takes

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.port = self.server_address[1]
        self.mood = "well"
        self.asked = 0
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of connections that the proxy cut."""


class Handler(BaseHTTPRequestHandler):
    server: Origin
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.reply(503 if self.server.mood == "unready" else 200, b"")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.asked += 1
        if self.server.mood == "dying":
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        if self.server.mood == "slow":
            time.sleep(0.1)
        code = {"draining": 503, "full": 429}.get(self.server.mood, 200)
        self.reply(code, f"{self.server.port} {len(body)}".encode())

    def reply(self, code: int, body: bytes) -> None:
        self.send_response(code)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Print nothing."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def proxied(folder: Path, ports: list[int], *, spill: bool = False) -> Iterator[int]:
    """Run HAProxy; without ``spill``, a request that is still ending does not send the next one elsewhere."""
    proxy = Proxy("127.0.0.1", free_port(), None, largest_request=len(BODY))
    file = folder / "haproxy.cfg"
    text = haproxy_config(proxy, [Replica("127.0.0.1", port, None) for port in ports])
    file.write_text(text if spill else re.sub(r"hash-balance-factor \d+", "hash-balance-factor 0", text))
    with subprocess.Popen(["haproxy", "-db", "-f", str(file)], stderr=subprocess.PIPE) as process:
        try:
            until = time.monotonic() + 10
            while time.monotonic() < until:
                try:
                    socket.create_connection(("127.0.0.1", proxy.http_port), timeout=1).close()
                    break
                except ConnectionRefusedError:
                    time.sleep(0.02)
            yield proxy.http_port
        finally:
            process.terminate()


def ask(port: int, key: str) -> tuple[int, int, int]:
    """Return the status, the port of the server that answered, and the bytes it got."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/infer", BODY, {"x-user-key": key})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            status, text = answer.status, answer.read()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read()
    who, size = text.split()
    return status, int(who), int(size)


@pytest.fixture
def origins() -> Iterator[list[Origin]]:
    made = [Origin(), Origin()]
    yield made
    for origin in made:
        origin.shutdown()
        origin.server_close()


@needs_haproxy
def test_requests_stay_with_their_replica_and_survive_it(tmp_path: Path, origins: list[Origin]) -> None:
    with proxied(tmp_path, [o.port for o in origins]) as port:
        home = {key: ask(port, key)[1] for key in map(str, range(20))}
        assert set(home.values()) == {o.port for o in origins}  # both serve someone
        assert {key: ask(port, key)[1] for key in home} == home
        first, second = origins
        of_first = [key for key, who in home.items() if who == first.port]
        for mood in ("dying", "draining"):  # the other answers, and gets the body whole
            first.mood = mood
            assert [ask(port, key) for key in of_first] == [(200, second.port, len(BODY))] * len(of_first)
        first.mood, asked = "full", second.asked
        assert [ask(port, key)[:2] for key in of_first] == [(429, first.port)] * len(of_first)
        assert second.asked == asked  # not sent again
        first.mood = "unready"
        until = time.monotonic() + 10
        while ask(port, of_first[0])[1] != second.port and time.monotonic() < until:
            time.sleep(0.05)
        asked = first.asked
        assert {ask(port, key)[1] for key in home} == {second.port}
        assert first.asked == asked  # found out of service by its health, not by asking it


@pytest.mark.parametrize(("count", "percent"), [(1, 150), (2, 160), (4, 320), (8, 400)])
def test_users_stay_where_bursts_are_short(count: int, percent: int) -> None:
    """At 150 percent, every burst of two requests sent a user away from one of several idle replicas."""
    proxy = Proxy("127.0.0.1", 8000, 8001, largest_request=len(BODY))
    assert f"hash-balance-factor {percent}\n" in haproxy_config(proxy, replicas_of(proxy, count))


@needs_haproxy
def test_a_hot_user_spills_to_the_other_replica(tmp_path: Path, origins: list[Origin]) -> None:
    with proxied(tmp_path, [o.port for o in origins], spill=True) as port, ThreadPoolExecutor(8) as pool:
        for origin in origins:
            origin.mood = "slow"
        assert {status for status, _, _ in pool.map(lambda _: ask(port, "hot"), range(8))} == {200}
    assert all(origin.asked > 0 for origin in origins)


def test_it_prints_how_to_start_each_replica(built_bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "made" / "haproxy.cfg"
    arguments = ["serve", str(built_bundle), "--queue", "128", "--http-port", "9000", "--no-grpc"]
    result = CliRunner().invoke(main, [*arguments, "--haproxy", str(file), "--replicas", "3"], prog_name="ugsep")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[1] == f"ugsep serve {built_bundle} --no-grpc --queue 128 --host 127.0.0.1 --http-port 9010"
    assert [line.rsplit(" ", 1)[1] for line in lines[1:4]] == ["9010", "9020", "9030"]
    assert lines[4] == f"haproxy -f {file}"
    text = file.read_text()
    assert all(f"#   {line}\n" in text for line in lines[1:4])
    assert [f"server replica{n} 127.0.0.1:90{n}0 check" in text for n in (1, 2, 3)] == [True] * 3
    assert "grpc" not in text.split("global", 1)[1]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--replicas", "2"], "--replicas is for --haproxy FILE"),
        (["--haproxy", "x.cfg", "--http-port", "0"], "needs ports that are known"),
        (["--haproxy", "x.cfg", "--replicas", "0"], "0 replicas; give 1 to 256"),
        (["--haproxy", "x.cfg", "--http-port", "65530"], "choose lower ports"),
        (["--haproxy", "x.cfg", "--host", "a b"], "neither a name nor an address"),
    ],
)
def test_bad_options_are_one_line(built_bundle: Path, tmp_path: Path, options: list[str], line: str) -> None:
    given = [str(tmp_path / option) if option == "x.cfg" else option for option in options]
    result = CliRunner().invoke(main, ["serve", str(built_bundle), *given])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.output
    assert line in result.stderr
    assert not (tmp_path / "x.cfg").exists()


@needs_haproxy
def test_a_dead_replica_does_not_look_idle(tmp_path: Path) -> None:
    """It has no running requests, so the bounded load would prefer it to the one that does all the work."""
    alive, port_of_victim = Origin(), free_port()
    alive.mood = "slow"
    victim = multiprocessing.get_context("fork").Process(target=serve_slowly, args=(port_of_victim,), daemon=True)
    victim.start()
    with proxied(tmp_path, [alive.port, port_of_victim], spill=True) as port, ThreadPoolExecutor(24) as pool:
        running = [pool.submit(ask, port, str(number)) for number in range(240)]
        time.sleep(0.3)
        victim.kill()
        found = [each.result() for each in running]
    alive.shutdown()
    alive.server_close()
    assert [status for status, _, _ in found] == [200] * 240
    assert {who for _, who, _ in found} == {alive.port, port_of_victim}


def serve_slowly(port: int) -> None:
    origin = Origin(port)
    origin.mood = "slow"
    time.sleep(60)

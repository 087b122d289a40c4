"""The server as a process: start, answers, drain, signals, bad starts, and the packages it loads."""

from __future__ import annotations

import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from engines import Ranker
from engines.cli.main import main
from engines.serve.listen.http_listener import HttpListener, bind
from engines.serve.observe.log import make_log
from engines.serve.server import RunningServer, start
from engines.serve.settings import ServeSettings
from engines.serve.swap.admin_client import ask as admin_ask
from engines.serve.swap.admin_client import is_served
from graphs.base.errors import UgsepError
from tests import tiny

ROOT = Path(__file__).parents[3]
PATIENCE = 30.0  # seconds for what takes milliseconds on an idle machine
HEAVY = (
    "torch", "onnx", "onnx_ir", "onnxscript", "scipy", "matplotlib", "jinja2", "rich", "yaml", "pyarrow", "quant",
    "export", "opentelemetry", "polygraphy", "pandas",
)  # fmt: skip


def infer_body(candidates: int = 5, seed: int = 0) -> dict[str, Any]:
    user, items = tiny.user_and_items(candidates, seed)
    kinds = {"int64": "INT64", "float32": "FP32"}
    inputs = [
        {"name": name, "shape": list(v.shape), "datatype": kinds[v.dtype.name], "data": v.reshape(-1).tolist()}
        for name, v in {**user, **items}.items()
    ]
    return {"inputs": inputs}


def ask(port: int, method: str, path: str, body: object = None) -> tuple[int, dict[str, str], Any]:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)) as connection:
        connection.request(method, path, None if body is None else json.dumps(body))
        response = connection.getresponse()
        raw = response.read()
        document = json.loads(raw) if "json" in response.getheader("content-type", "") else raw
        return response.status, {k.lower(): v for k, v in response.getheaders()}, document


@cache
def ranker(bundle: Path) -> Ranker:
    return Ranker.from_bundle(bundle)


def assert_scores(document: dict[str, Any], bundle: Path, candidates: int = 5, seed: int = 0) -> None:
    expected = ranker(bundle).score(*tiny.user_and_items(candidates, seed))
    found = {output["name"]: np.array(output["data"], np.float32) for output in document["outputs"]}
    assert set(found) == set(expected)
    for task, logits in expected.items():
        np.testing.assert_array_equal(found[task], logits)


def settings(bundle: Path, **changes: Any) -> ServeSettings:
    given: dict[str, Any] = {"http_port": 0, "grpc_port": 0, "drain_seconds": 0.0, "watch_seconds": 0.0, **changes}
    return ServeSettings(bundle, **given)


@pytest.fixture
def serve(built_bundle: Path) -> Iterator[Callable[..., RunningServer]]:
    running: list[RunningServer] = []

    def one(**changes: Any) -> RunningServer:
        running.append(start(settings(built_bundle, **changes), make_log(io.StringIO())[0]))
        return running[-1]

    yield one
    for server in running:
        server.stop()


def test_a_server_answers_with_the_scores_of_the_ranker(serve, built_bundle: Path) -> None:
    server = serve()
    code, _, document = ask(server.http.port, "POST", "/v2/models/tiny/infer", infer_body())
    assert code == 200, document
    assert document["model_version"] == server.describe()["version"]
    assert_scores(document, built_bundle)
    code, headers, text = ask(server.http.port, "GET", "/metrics")
    assert (code, headers["content-type"].split(";")[0]) == (200, "text/plain")
    version = document["model_version"]
    assert f'ugsep_requests_total{{code="200",model="tiny",version="{version}"}} 1.0' in text.decode()
    status = ask(server.http.port, "GET", "/status")[2]
    assert (status["model"]["state"], status["traffic"]["requests"]) == ("ready", 1)
    assert ask(server.http.port, "GET", "/")[0] == 200


def test_a_draining_server_is_not_ready_but_serves_until_it_stops_accepting(serve, built_bundle: Path) -> None:
    server = serve(drain_seconds=1.0)
    port = server.http.port
    assert ask(port, "GET", "/v2/health/ready")[0] == 200
    stopping = threading.Thread(target=server.stop)
    stopping.start()
    while server.context.lifecycle.state != "draining":
        time.sleep(0.01)
    assert ask(port, "GET", "/v2/health/ready")[0] == 503
    assert ask(port, "GET", "/v2/health/live")[0] == 200
    code, headers, document = ask(port, "POST", "/v2/models/tiny/infer", infer_body())
    assert (code, headers["connection"]) == (200, "close")
    assert_scores(document, built_bundle)
    stopping.join(PATIENCE)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_a_server_stops_whatever_half_requests_are_held_open(serve) -> None:
    server = serve(drain_limit=0.5, body_timeout=60.0)
    with socket.create_connection(("127.0.0.1", server.http.port)) as held:
        held.sendall(b"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhalf")
        time.sleep(0.1)
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 10


def test_slow_clients_hold_no_worker_and_are_cut(serve) -> None:
    server = serve(body_timeout=1.0, workers=1)
    address = ("127.0.0.1", server.http.port)
    held = [socket.create_connection(address) for _ in range(200)]
    for connection in held:
        connection.sendall(b"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n{")
    began = time.monotonic()
    assert ask(server.http.port, "POST", "/v2/models/tiny/infer", infer_body())[0] == 200
    assert time.monotonic() - began < 1.0
    until = time.monotonic() + PATIENCE
    while server.http.connections and time.monotonic() < until:
        time.sleep(0.05)
    assert server.http.connections == 0
    assert server.context.scheduler.running == 0
    for connection in held:
        connection.close()


@pytest.mark.parametrize("side", ["http_port", "grpc_port"])
def test_a_port_in_use_is_refused_before_anything_listens(built_bundle: Path, side: str) -> None:
    async def nothing(scope: object, receive: object, send: object) -> None:
        raise AssertionError("nobody asks")

    taken = HttpListener(nothing, bind("127.0.0.1", 0), 1.0)
    taken.start()
    before = listening()
    with pytest.raises(UgsepError, match=f"cannot listen on 127.0.0.1:{taken.port}: Address already in use"):
        start(settings(built_bundle, **{side: taken.port}), make_log(io.StringIO())[0])
    assert listening() == before
    taken.close(1.0)


def listening() -> set[str]:
    """The TCP sockets of this process that listen, by inode."""
    ours = {os.readlink(f) for f in Path("/proc/self/fd").iterdir() if f.is_symlink() and f.exists()}
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    return {row[9] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in ours}


def command(*args: object) -> list[str]:
    return [sys.executable, "-m", "engines.cli.entry", "serve", *map(str, args)]


class Process:
    """``ugsep serve`` in a process of its own, ready."""

    def __init__(self, *args: object) -> None:
        given = command(*args, "--http-port", 0, "--grpc-port", 0, "--log-json")
        self.process = subprocess.Popen(given, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.stderr and self.process.stderr.read()
        self.ready = json.loads(line)
        self.port = int(self.ready["http"].rpartition(":")[2])

    def end(self) -> tuple[int, list[dict[str, Any]]]:
        """Return the exit status and the log."""
        out, err = self.process.communicate(timeout=PATIENCE)
        assert out == "", "one line on stdout, whatever happens"
        return self.process.returncode, [json.loads(line) for line in err.splitlines()]


def test_sigterm_drains_and_exits_with_0(built_bundle: Path) -> None:
    server = Process(built_bundle, "--drain-seconds", 0.3, "--slow-ms", 0.001)
    assert (server.ready["event"], server.ready["model"]) == ("ready", "tiny")
    assert ask(server.port, "POST", "/v2/models/tiny/infer", infer_body())[0] == 200
    server.process.send_signal(signal.SIGHUP)
    server.process.send_signal(signal.SIGTERM)
    status, log = server.end()
    assert status == 0
    events = [line["event"] for line in log]
    assert [e for e in events if e in ("reload", "draining")] == ["reload", "draining"]
    slow = [line for line in log if line["event"] == "slow request"]  # logged after the answer, by another thread
    assert len(slow) == 1
    assert log[-1]["event"] == "stopped"
    assert log[-1]["drained"] is True
    assert set(slow[0]) >= {"at", "level", "code", "candidates", "queue_ms", "user_ms", "item_ms", "total_ms"}


def test_sigterm_under_load_loses_no_request(built_bundle: Path) -> None:
    server = Process(built_bundle, "--drain-seconds", 0.3)
    codes: list[int] = []
    failures: list[str] = []

    def client(seed: int) -> None:
        while True:
            try:
                code, _, document = ask(server.port, "POST", "/v2/models/tiny/infer", infer_body(5, seed))
                codes.append(code)
                assert_scores(document, built_bundle, 5, seed)
            except ConnectionRefusedError:
                return
            except (OSError, http.client.HTTPException, AssertionError) as error:
                failures.append(repr(error))
                return

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    server.process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join(PATIENCE)
    assert server.end()[0] == 0
    assert failures == []
    assert set(codes) == {200}


def test_a_second_signal_cuts_the_wait(built_bundle: Path) -> None:
    server = Process(built_bundle, "--drain-seconds", 300)
    server.process.send_signal(signal.SIGINT)
    until = time.monotonic() + PATIENCE
    while ask(server.port, "GET", "/v2/health/ready")[0] != 503 and time.monotonic() < until:
        time.sleep(0.02)
    server.process.send_signal(signal.SIGTERM)
    assert server.end()[0] == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nowhere"], "no manifest.json, so not a bundle"),
        (["BUNDLE", "--http-port", "8123", "--grpc-port", "8123"], "HTTP and gRPC are both on port 8123"),
        (["BUNDLE", "--workers", "0"], "workers is 0; it must be from 1 to 1024"),
        (["BUNDLE", "--threads", "0"], "threads is 0; it must be from 1 to 4096"),
        (["BUNDLE", "--name", "films/like"], "name is 'films/like'; it is a part of URLs"),
        (["BUNDLE", "--name", "a'b"], "it is a part of URLs: use letters, digits and - . _"),
        (["BUNDLE", "--name", "a\x1bb"], "name is 'a\\x1bb'; it is a part of URLs"),
        (["BUNDLE", "--queue", "-1"], "queue is -1; it must be from 1 to 1048576"),
        (["BUNDLE", "--slow-ms", "nan"], "slow_ms is nan; it must be from 0 to 3600000"),
        (["BUNDLE", "--state-cache", "lots"], "'lots' is not a valid size"),
        (["BUNDLE", "--backend", "onnxruntim"], "no user engine with backend 'onnxruntim'"),
        (["BUNDLE", "--examples", "nowhere"], "nowhere"),
        (["BUNDLE", "--host", "192.0.2.1"], "cannot listen on 192.0.2.1:0: Cannot assign requested address"),
        (["BUNDLE", "--http-prot", "1"], "unknown option '--http-prot', did you mean '--http-port'?"),
    ],
)
def test_a_bad_start_is_one_line_and_status_2(built_bundle: Path, args: list[str], message: str) -> None:
    given = [str(built_bundle) if arg == "BUNDLE" else arg for arg in args]
    done = CliRunner().invoke(main, ["serve", "--http-port", "0", "--grpc-port", "0", *given])
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert done.stderr.startswith("error: ")
    assert message in done.stderr


@pytest.mark.parametrize("streams", [">&- 2>&- <&-", "> /dev/full 2>&1"])
def test_a_server_needs_no_standard_streams(built_bundle: Path, tmp_path: Path, streams: str) -> None:
    admin = tmp_path / "admin.sock"
    args = command(built_bundle, "--http-port", 0, "--no-grpc", "--drain-seconds", 0, "--admin-socket", admin)
    process = subprocess.Popen(["sh", "-c", f'exec "$@" {streams}', "sh", *args], cwd=ROOT)
    try:
        until = time.monotonic() + PATIENCE
        while not is_served(admin) and process.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
        time.sleep(0.5)  # it says that it is ready after the socket is there
        assert admin_ask(admin, "GET /status", PATIENCE)["model"]["state"] == "ready"
        # A socket or file in their place would receive what a library prints.
        taken = {os.readlink(f"/proc/{process.pid}/fd/{number}") for number in (1, 2)}
        assert taken <= {"/dev/null", "/dev/full"}
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()


SIGHUP_WHILE_LOADING = """
import os, signal, sys
import engines.serve.server as server
load, announce = server.load_bundle, server._announce
def load_and_hang_up(settings):
    os.kill(os.getpid(), signal.SIGHUP)
    return load(settings)
def announce_and_end(running, out):
    announce(running, out)
    os.kill(os.getpid(), signal.SIGTERM)
server.load_bundle, server._announce = load_and_hang_up, announce_and_end
sys.argv = ["ugsep", *{args!r}]
from engines.cli.entry import ugsep
ugsep()
"""


def test_sighup_while_the_bundle_loads_does_not_end_the_process(built_bundle: Path) -> None:
    args = ["serve", str(built_bundle), "--http-port", "0", "--grpc-port", "0", "--drain-seconds", "0"]
    code = SIGHUP_WHILE_LOADING.format(args=args)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ready: ")


SIGTERM_BEFORE_READY = """
import os, signal, sys
import engines.serve.server as server
class Collector:
    freeze = staticmethod(server.gc.freeze)
    collect = staticmethod(lambda: os.kill(os.getpid(), signal.SIGTERM))
server.gc = Collector
sys.argv = ["ugsep", *{args!r}]
from engines.cli.entry import ugsep
ugsep()
"""


def test_sigterm_between_the_first_request_and_ready_drains(built_bundle: Path) -> None:
    args = ["serve", str(built_bundle), "--http-port", "0", "--no-grpc", "--drain-seconds", "0"]
    code = SIGTERM_BEFORE_READY.format(args=args)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, "stopped drained=true" in done.stderr) == (0, True), done.stderr


def test_a_damaged_bundle_never_listens(bundle: Path) -> None:
    engine = next((bundle / "engines").rglob("item.onnx"))
    engine.write_bytes(engine.read_bytes()[:-1] + b"x")
    before = listening()
    with pytest.raises(UgsepError, match="sha256"):
        start(settings(bundle), make_log(io.StringIO())[0])
    assert listening() == before


LOADED = """
import json, os, signal, sys, threading
sys.modules.update(dict.fromkeys({missing!r}))
import engines.serve.server as server
def announce(running, out):
    print(json.dumps(sorted({{name.split(".")[0] for name, m in sys.modules.items() if m is not None}})), flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
server._announce = announce
sys.argv = ["ugsep", *{args!r}]
from engines.cli.entry import ugsep
ugsep()
"""


def test_serving_loads_no_package_of_another_extra(built_bundle: Path) -> None:
    args = ["serve", str(built_bundle), "--http-port", "0", "--grpc-port", "0", "--drain-seconds", "0"]
    code = LOADED.format(missing=HEAVY, args=args)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {"uvicorn", "grpc", "engines"} <= set(json.loads(done.stdout))


def test_the_help_of_serve_loads_no_package_of_another_extra() -> None:
    code = (
        "import sys; sys.argv = ['ugsep', 'serve', '--help']\nfrom engines.cli.entry import ugsep\n"
        "try: ugsep()\nexcept SystemExit: print(sorted({m.split('.')[0] for m in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--max-batch-delay" in done.stdout
    assert [name for name in HEAVY if f"'{name}'" in done.stderr] == []


@pytest.mark.parametrize("package", ["click", "uvicorn", "grpc", "prometheus_client"])
def test_a_missing_package_of_the_extra_is_named(package: str) -> None:
    code = (
        f"import sys; sys.modules[{package!r}] = None; sys.argv = ['ugsep', 'serve', 'x']\n"
        "from engines.cli.entry import ugsep; ugsep()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: this command requires package '{package}'; run: pip install 'ugsep[serve]'\n"

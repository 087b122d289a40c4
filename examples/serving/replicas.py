"""``python -m examples.serving.replicas BUNDLE``: two replicas behind HAProxy, one of which is killed meanwhile.

It writes the configuration with ``ugsep serve --haproxy``, starts what that prints, sends the bundle's own fixtures
through the proxy and compares every answer with the expected scores.
"""

from __future__ import annotations

import http.client
import json
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click
import numpy as np

from engines.backends.contract import Array
from engines.bundle.fixtures import read_fixtures
from engines.bundle.manifest import read_manifest
from engines.cli.group import Command
from graphs.base.errors import GateFailed, UgsepError

UGSEP = [sys.executable, "-c", "from engines.cli.main import main; main(prog_name='ugsep')"]
_START_SECONDS = 60.0


@click.command(cls=Command)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--port", type=int, default=8000, show_default=True, help="Of the proxy; the replicas follow.")
@click.option("--requests", type=click.IntRange(min=2), default=200, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), default=Path("build/replicas"), show_default=True)
def main(bundle: Path, port: int, requests: int, work: Path) -> None:
    """Serve BUNDLE from two replicas behind HAProxy; kill one after half of the requests."""
    if shutil.which("haproxy") is None:
        raise UgsepError("haproxy is not installed; on Debian: apt-get install haproxy")
    work.mkdir(parents=True, exist_ok=True)
    ports = ["--http-port", str(port), "--no-grpc", "--drain-seconds", "1"]
    written = subprocess.run(
        [*UGSEP, "serve", str(bundle), *ports, "--haproxy", str(work / "haproxy.cfg"), "--replicas", "2"],
        capture_output=True,
        text=True,
        check=False,
    )
    if written.returncode:
        raise UgsepError(written.stderr.strip().removeprefix("error: "))
    _, *commands, proxy = written.stdout.splitlines()
    with ExitStack() as stack:
        replicas = [
            stack.enter_context(_running([*UGSEP, *shlex.split(line)[1:]], work / f"replica{number}.log"))
            for number, line in enumerate(commands, 1)
        ]
        stack.enter_context(_running([*shlex.split(proxy), "-db"], work / "haproxy.log"))
        _wait_until_ready(port, replicas, work)
        answered = _send(bundle, port, requests, replicas[0])
    click.echo(f"{answered['right']} of {requests} requests answered with the expected scores: {dict(answered)}")
    if answered["right"] != requests:
        raise GateFailed(f"{requests - answered['right']} requests were lost or wrong")


def _send(bundle: Path, port: int, requests: int, victim: subprocess.Popen[bytes]) -> Counter[str]:
    """Send the fixtures in turn, as many users; kill a replica halfway; return how many answers were right."""
    fixtures, model = read_fixtures(bundle), read_manifest(bundle).model
    found: Counter[str] = Counter()
    for number in range(requests):
        if number == requests // 2:
            victim.kill()
        fixture = fixtures.requests[number % len(fixtures.requests)]
        tensors = {**fixture.user, **fixture.items}
        if fixture.user_index is not None:
            tensors["user_index"] = fixture.user_index
        # JSON for the sake of the example; a caller in a hurry sends binary tensors or gRPC.
        body = json.dumps({"inputs": [_tensor(name, value) for name, value in tensors.items()]})
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            headers = {"content-type": "application/json", "x-user-key": f"user-{number % 50}"}
            connection.request("POST", f"/v2/models/{model}/infer", body, headers)
            answer = connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException) as error:
            found[type(error).__name__] += 1
            continue
        finally:
            connection.close()
        if answer.status != 200:
            found[str(answer.status)] += 1
            continue
        scores = {output["name"]: np.asarray(output["data"]) for output in json.loads(content)["outputs"]}
        right = all(
            np.abs(scores[task] - expected).max() <= fixtures.tolerances[task]
            for task, expected in fixture.expected.items()
        )
        found["right" if right else "wrong"] += 1
    return found


def _tensor(name: str, value: Array) -> dict[str, object]:
    kind = {"int64": "INT64", "float32": "FP32", "float16": "FP16", "int32": "INT32", "bool": "BOOL"}[
        value.dtype.name
    ]
    return {"name": name, "datatype": kind, "shape": list(value.shape), "data": value.ravel().tolist()}


@contextmanager
def _running(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT) as process:
        try:
            yield process
        finally:
            process.terminate()


def _wait_until_ready(port: int, replicas: Sequence[subprocess.Popen[bytes]], work: Path) -> None:
    """Wait until the proxy finds both replicas ready.

    Raises:
        UgsepError: one ended, or it took too long.
    """
    waiting = {port + 10 * number for number in range(len(replicas) + 1)}
    until = time.monotonic() + _START_SECONDS
    while waiting:
        ended = [number for number, replica in enumerate(replicas, 1) if replica.poll() is not None]
        if ended or time.monotonic() > until:
            log = work / f"replica{(ended or [1])[0]}.log"
            lines = log.read_text(errors="replace").splitlines() or ["it printed nothing"]
            raise UgsepError(f"a replica is not ready: {lines[-1]} ({log})")
        waiting = {each for each in waiting if not _is_ready(each)}
        time.sleep(0.1)


def _is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    main()

"""A whole server, for what it keeps of its requests."""

from __future__ import annotations

import http.client
import io
import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from engines.serve.observe.log import make_log
from engines.serve.server import start
from engines.serve.settings import ServeSettings
from engines.verify.replay.replay import Bounds, replay
from graphs.base.errors import UgsepError
from tests import tiny

PATIENCE = 60.0  # seconds for what takes milliseconds on an idle machine


def settings(bundle: Path, **changes: Any) -> ServeSettings:
    return ServeSettings(bundle, http_port=0, grpc_port=None, drain_seconds=0.0, watch_seconds=0.0, **changes)


def infer_body(candidates: int) -> bytes:
    user, items = tiny.user_and_items(candidates, candidates)
    kinds = {"int64": "INT64", "float32": "FP32"}
    given = [
        {"name": name, "shape": list(v.shape), "datatype": kinds[v.dtype.name], "data": v.reshape(-1).tolist()}
        for name, v in {**user, **items}.items()
    ]
    return json.dumps({"inputs": given}).encode()


def answer(url: str, path: str, body: bytes | None = None) -> bytes:
    headers = {"x-user-key": "anna", "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    with closing(http.client.HTTPConnection(url.removeprefix("http://"), timeout=PATIENCE)) as connection:
        connection.request("POST" if body else "GET", path, body, headers)
        response = connection.getresponse()
        text = response.read()
        assert response.status == 200, text
        return text


def test_what_a_server_recorded_replays_to_the_same_scores(built_bundle: Path, tmp_path: Path) -> None:
    out = io.StringIO()
    log, _ = make_log(out)
    server = start(settings(built_bundle, name="tiny", record=tmp_path / "kept", record_share=1.0), log)
    try:
        for candidates in (1, 5, 9):
            answer(server.url, "/v2/models/tiny/infer", infer_body(candidates))
        metrics = answer(server.url, "/metrics").decode()
    finally:
        assert server.stop()
    assert "ugsep_recorded_total 0.0" in metrics
    assert "ugsep_record_dropped_total 0.0" in metrics
    assert "ugsep_recorded_total 3.0" in server.context.metrics.render()[0].decode()
    found = replay(built_bundle, None, [tmp_path / "kept"], Bounds())
    assert (found.requests, found.rows) == (3, 15)
    assert found.reference == "the scores served when recorded"
    assert found.tasks["like"].agreement.max_abs == 0.0
    (file,) = (tmp_path / "kept").iterdir()
    assert b"anna" not in file.read_bytes()
    assert "anna" not in out.getvalue()


def test_a_folder_at_its_limit_is_logged_once_and_requests_are_served(built_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "old.parquet").write_bytes(b"x" * 100)
    out = io.StringIO()
    log, _ = make_log(out)
    server = start(settings(built_bundle, name="tiny", record=tmp_path, record_share=1.0, record_limit=100), log)
    try:
        for _ in range(2):
            answer(server.url, "/v2/models/tiny/infer", infer_body(3))
    finally:
        assert server.stop()
    (line,) = [line for line in out.getvalue().splitlines() if "recording stopped" in line]
    assert "limit of 100 bytes" in line
    assert "ugsep_record_dropped_total 2.0" in server.context.metrics.render()[0].decode()


def test_a_folder_or_a_variable_that_cannot_be_used_is_an_error_before_anything_listens(
    built_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, _ = make_log(io.StringIO())
    (tmp_path / "file").write_text("")
    with pytest.raises(UgsepError, match=r"--record '.*file': .*; give a folder to write to"):
        start(settings(built_bundle, record=tmp_path / "file"), log)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "soon")
    with pytest.raises(UgsepError, match="check the OTEL_ variables"):
        start(settings(built_bundle, traces=True), log)


def test_traces_without_a_collector_cost_no_request(built_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    log, _ = make_log(io.StringIO())
    server = start(settings(built_bundle, name="tiny", traces=True), log)
    try:
        answer(server.url, "/v2/models/tiny/infer", infer_body(3))
    finally:
        assert server.stop()

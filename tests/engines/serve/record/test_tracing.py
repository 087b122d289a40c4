"""One server span per request with its stages, in the trace of the caller; nothing that identifies a user."""

from __future__ import annotations

import http.client
import io
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from engines.bundle.manifest import read_manifest
from engines.serve.core.job import Answer, StageSeconds
from engines.serve.core.outcome import Outcome, code_of
from engines.serve.core.served_bundle import ServedBundle
from engines.serve.errors import DeadlineExceeded, NotReady, QueueFull
from engines.serve.observe.log import make_log
from engines.serve.ranker import Ranker
from engines.serve.record.tracing import Tracer, make_tracer
from engines.serve.running import assembly
from engines.serve.score_request import ScoreRequest
from engines.serve.server import start
from engines.serve.settings import ServeSettings
from graphs.base.errors import UgsepError

ROOT = Path(__file__).parents[4]
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
STAGES = StageSeconds(queue=0.004, user=0.010, item=0.020)


@dataclass(frozen=True)
class Sent:
    """A job as a protocol makes it."""

    arrived: float
    traceparent: str = ""
    users_only: bool = False
    deadline: float | None = None
    routing_key: str = "user-4711"

    def decode(self, served: ServedBundle) -> ScoreRequest:
        raise UgsepError("not called")

    def answer(self, answer: Answer) -> None:
        raise UgsepError("not called")

    def fail(self, error: Exception) -> None:
        raise UgsepError("not called")


@pytest.fixture
def served(built_bundle: Path) -> Iterator[ServedBundle]:
    with Ranker.from_bundle(built_bundle) as ranker:
        yield ServedBundle("tiny", "0123456789ab", built_bundle, read_manifest(built_bundle), ranker)


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracer(exporter: InMemorySpanExporter) -> Iterator[Tracer]:
    made = Tracer(SimpleSpanProcessor(exporter))
    yield made
    made.close()


def outcome(served: ServedBundle | None, result: Answer | Exception, job: Sent) -> Outcome:
    code = 200 if isinstance(result, Answer) else code_of(result)
    return Outcome(job, None, result, served, 64, code, job.arrived + 0.004, 0.003, job.arrived + 0.040)


def answered(served: ServedBundle, **job: object) -> Outcome:
    answer = Answer(served, {}, 1, 0, 2, STAGES)
    return outcome(served, answer, Sent(time.monotonic() - 0.040, **job))  # type: ignore[arg-type]


def server_span(exporter: InMemorySpanExporter) -> ReadableSpan:
    (span,) = [s for s in exporter.get_finished_spans() if s.kind is SpanKind.SERVER]
    return span


def test_a_request_is_a_span_with_its_stages_in_the_callers_trace(
    tracer: Tracer, exporter: InMemorySpanExporter, served: ServedBundle
) -> None:
    before = time.time_ns()
    tracer.record(answered(served, traceparent=PARENT))
    *stages, span = exporter.get_finished_spans()
    assert span.context is not None
    assert span.parent is not None
    assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == tuple(PARENT.split("-")[1:3])
    assert (span.name, span.kind, span.status.status_code) == ("infer tiny", SpanKind.SERVER, StatusCode.UNSET)
    assert span.attributes == {
        "ugsep.model": "tiny", "ugsep.version": "0123456789ab", "ugsep.candidates": 64, "ugsep.code": 200,
        "ugsep.user_cached": True, "ugsep.batch_users": 2,
    }  # fmt: skip
    assert span.start_time is not None
    assert span.end_time is not None
    assert abs(span.end_time - span.start_time - 40_000_000) < 1000
    assert abs(span.end_time - before) < 1_000_000_000, "times are those of the wall clock"
    assert [s.name for s in stages] == ["queue", "codec", "user", "item"]
    lengths = [round((s.end_time - s.start_time) / 1e6, 3) for s in stages if s.end_time and s.start_time]
    assert lengths == [4.0, 3.0, 10.0, 20.0]
    at = span.start_time
    for stage in stages:
        assert stage.parent is not None
        assert (stage.parent.span_id, stage.start_time) == (span.context.span_id, at)
        at = stage.end_time or 0
    assert at <= span.end_time


@pytest.mark.parametrize(
    ("error", "code", "status"),
    [(QueueFull("full"), 429, StatusCode.UNSET), (NotReady("draining"), 503, StatusCode.ERROR)],
)
def test_a_refused_request_is_a_span_in_the_callers_trace(
    exporter: InMemorySpanExporter, tracer: Tracer, error: UgsepError, code: int, status: StatusCode
) -> None:
    before = time.time_ns()
    tracer.refused(error, code, PARENT)
    span = server_span(exporter)
    assert span.context is not None
    assert span.parent is not None
    assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == tuple(PARENT.split("-")[1:3])
    assert (span.name, span.status.status_code) == ("infer", status)
    assert span.attributes == {"ugsep.code": code, "error.type": type(error).__name__}
    assert span.start_time == span.end_time
    assert 0 <= (span.end_time or 0) - before < 10**9, "a time of the wall clock"


@pytest.mark.parametrize("protocol", ["direct", "application", "grpc"])
def test_a_server_that_refuses_traces_it(
    built_bundle: Path, exporter: InMemorySpanExporter, tracer: Tracer, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    monkeypatch.setattr(assembly, "make_tracer", lambda enabled: tracer)
    settings = ServeSettings(built_bundle, http_port=0, grpc_port=0, drain_seconds=0.0, watch_seconds=0.0)
    server = start(settings, make_log(io.StringIO())[0])
    try:
        monkeypatch.setattr(server.context.scheduler, "limit", 0)
        if protocol == "grpc":
            assert server.grpc is not None
            with grpc.insecure_channel(f"127.0.0.1:{server.grpc.port}") as channel:
                call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
                with pytest.raises(grpc.RpcError, match="RESOURCE_EXHAUSTED"):
                    call(b"", timeout=30.0, metadata=(("traceparent", PARENT),))
        else:
            with closing(http.client.HTTPConnection("127.0.0.1", server.http.port, timeout=30.0)) as connection:
                headers = {"traceparent": PARENT} | ({} if protocol == "direct" else {"Connection": "close"})
                connection.request("POST", "/v2/models/tiny/infer", b"{}", headers)
                assert connection.getresponse().status == 429
    finally:
        server.stop()
    span = server_span(exporter)
    assert span.attributes == {"ugsep.code": 429, "error.type": "QueueFull"}
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == PARENT.split("-")[2]


def test_nothing_identifies_a_user(tracer: Tracer, exporter: InMemorySpanExporter, served: ServedBundle) -> None:
    job = Sent(time.monotonic())
    tracer.record(outcome(served, UgsepError("user feature 'user_id' has id 4711; its table has 50 rows"), job))
    tracer.record(outcome(served, ValueError("4711"), job))
    assert len(exporter.get_finished_spans()) > 1
    assert [s.to_json() for s in exporter.get_finished_spans() if "4711" in s.to_json()] == []


@pytest.mark.parametrize(
    ("error", "code", "status"),
    [
        (UgsepError("bad"), 400, StatusCode.UNSET),
        (DeadlineExceeded("late"), 504, StatusCode.ERROR),
        (ValueError("ours"), 500, StatusCode.ERROR),
    ],
)
def test_an_error_has_its_type_and_is_ours_or_the_clients(
    tracer: Tracer, exporter: InMemorySpanExporter, error: Exception, code: int, status: StatusCode
) -> None:
    tracer.record(outcome(None, error, Sent(time.monotonic() - 0.01)))
    span = server_span(exporter)
    assert span.attributes is not None
    assert (span.attributes["ugsep.code"], span.attributes["error.type"]) == (code, type(error).__name__)
    assert (span.status.status_code, span.name) == (status, "infer")


@pytest.mark.parametrize(
    "sent",
    ["", "00-xyz", "00-" + "0" * 32 + "-b7ad6b7169203331-01", PARENT + "-more", "\x00" * 50, "é" * 55, "9" * 100_000],
)
def test_a_malformed_traceparent_is_ignored(
    tracer: Tracer, exporter: InMemorySpanExporter, served: ServedBundle, sent: str
) -> None:
    tracer.record(answered(served, traceparent=sent))
    assert server_span(exporter).parent is None


def test_a_caller_that_does_not_sample_is_respected(
    tracer: Tracer, exporter: InMemorySpanExporter, served: ServedBundle
) -> None:
    tracer.record(answered(served, traceparent=PARENT[:-1] + "0"))
    assert exporter.get_finished_spans() == ()


def test_warming_a_user_has_its_own_name(
    tracer: Tracer, exporter: InMemorySpanExporter, served: ServedBundle
) -> None:
    tracer.record(answered(served, users_only=True))
    assert server_span(exporter).name == "warm tiny"


def test_the_service_has_a_name_unless_the_environment_gives_one(
    exporter: InMemorySpanExporter, served: ServedBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    for given, expected in (("", "ugsep"), ("films", "films")):
        monkeypatch.setenv("OTEL_SERVICE_NAME", given)
        exporter.clear()
        Tracer(SimpleSpanProcessor(exporter)).record(answered(served))
        assert server_span(exporter).resource.attributes["service.name"] == expected


def test_traces_are_off_unless_asked_for() -> None:
    assert make_tracer(False) is None


def test_an_unreachable_collector_neither_blocks_nor_raises(
    served: ServedBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    made = make_tracer(True)
    assert made is not None
    started = time.perf_counter()
    for _ in range(200):
        made.record(answered(served))
    assert time.perf_counter() - started < 2.0
    made.close(0.1)
    assert time.perf_counter() - started < 4.0


def test_a_variable_that_cannot_be_used_is_an_error_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "soon")
    with pytest.raises(UgsepError, match=r"soon.*check the OTEL_ variables"):
        make_tracer(True)


@pytest.mark.parametrize("missing", ["opentelemetry", "opentelemetry.exporter"])
def test_without_the_packages_the_error_names_the_extra(missing: str) -> None:
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from engines.serve.record.tracing import make_tracer\n"
        "from graphs.base.errors import UgsepError\n"
        "assert make_tracer(False) is None\n"
        "try: make_tracer(True)\n"
        "except UgsepError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "traces require package 'opentelemetry'; run: pip install 'ugsep[otel]'\n"

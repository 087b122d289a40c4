"""Requests as OpenTelemetry spans, made after the fact: the request path carries times, not spans."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from engines.serve.core.job import Answer
from engines.serve.core.outcome import Outcome
from graphs.base.errors import UgsepError

if TYPE_CHECKING:  # an extra, loaded only if traces are asked for
    from opentelemetry.sdk.trace import SpanProcessor

__all__ = ["Tracer", "make_tracer"]

_SERVICE = "ugsep"


class Tracer:
    """Makes one server span per request, refused ones too, with a child per stage, in the caller's trace.

    The durations of the children are measured; they are laid end to end, because only their sum per request is known
    when several requests share an engine call. Nothing that identifies a user is in a span.
    """

    def __init__(self, processor: SpanProcessor) -> None:
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        resource = Resource.create()
        if str(resource.attributes.get(SERVICE_NAME, "unknown_service")).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: _SERVICE}))  # unless OTEL_SERVICE_NAME gives another
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("ugsep.serve")
        self._propagator = TraceContextTextMapPropagator()

    def record(self, outcome: Outcome) -> None:
        """Make the spans of a finished request; a ``traceparent`` that is not one is ignored."""
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        job, result, seconds = outcome.job, outcome.result, outcome.seconds
        offset = time.time_ns() - time.monotonic_ns()
        begin, end = (int(moment * 1e9) + offset for moment in (job.arrived, outcome.ended))
        name = outcome.served.name if outcome.served is not None else ""
        span = self._tracer.start_span(
            f"{'warm' if job.users_only else 'infer'} {name}".rstrip(),
            context=self._propagator.extract({"traceparent": job.traceparent}),
            kind=SpanKind.SERVER,
            start_time=begin,
        )
        if span.is_recording():
            span.set_attribute("ugsep.model", name)
            span.set_attribute("ugsep.version", outcome.served.version if outcome.served is not None else "")
            span.set_attribute("ugsep.candidates", outcome.candidates)
            span.set_attribute("ugsep.code", outcome.code)
            if isinstance(result, Answer):
                span.set_attribute("ugsep.user_cached", not result.misses)
                span.set_attribute("ugsep.batch_users", result.batch_users)
            else:
                span.set_attribute("error.type", type(result).__name__)  # its message may quote a feature's value
                if outcome.code >= 500:  # what the client got wrong is no error of a server span
                    span.set_status(Status(StatusCode.ERROR))
            parent = set_span_in_context(span)
            at = begin
            stages = {"queue": seconds.queue, "codec": outcome.codec, "user": seconds.user, "item": seconds.item}
            for stage, spent in stages.items():
                if spent > 0.0:
                    until = min(at + int(spent * 1e9), end)
                    self._tracer.start_span(stage, context=parent, start_time=at).end(until)
                    at = until
        span.end(end)

    def refused(self, error: UgsepError, code: int, traceparent: str) -> None:
        """Make the span of a request that was answered ``code`` before it was queued: it has no length."""
        from opentelemetry.trace import SpanKind, Status, StatusCode

        now = time.time_ns()
        span = self._tracer.start_span(
            "infer",
            context=self._propagator.extract({"traceparent": traceparent}),
            kind=SpanKind.SERVER,
            start_time=now,
            attributes={"ugsep.code": code, "error.type": type(error).__name__},
        )
        if code >= 500:
            span.set_status(Status(StatusCode.ERROR))
        span.end(now)

    def close(self, timeout: float = 2.0) -> bool:
        """Export what is left; return whether that took less than ``timeout`` seconds."""
        # The SDK waits for an exporter that retries much longer than a server that ends can.
        thread = threading.Thread(target=self._provider.shutdown, name="ugsep-traces", daemon=True)
        thread.start()
        thread.join(timeout)
        return not thread.is_alive()


def make_tracer(enabled: bool) -> Tracer | None:
    """Return a tracer that exports to an OTLP collector over gRPC, or None if traces are off.

    The SDK reads the collector's address, the sampler and the rest from the standard ``OTEL_*`` variables.

    Raises:
        UgsepError: the packages are missing, or a variable cannot be used.
    """
    if not enabled:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        raise UgsepError("traces require package 'opentelemetry'; run: pip install 'ugsep[otel]'") from error
    try:
        return Tracer(BatchSpanProcessor(OTLPSpanExporter()))
    except (ValueError, TypeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UgsepError(f"traces cannot be exported ({reason}); check the OTEL_ variables") from error

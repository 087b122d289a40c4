"""Connect the scheduler of a server with what counts, logs, records and traces its requests."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from engines.serve.core.job import Answer
from engines.serve.core.lifecycle import Lifecycle
from engines.serve.core.misses import MissReport
from engines.serve.core.model_slot import ModelSlot
from engines.serve.core.outcome import Outcome, code_of
from engines.serve.core.scheduler import Scheduler
from engines.serve.core.served_bundle import ServedBundle
from engines.serve.errors import NotReady
from engines.serve.observe.latency_window import LatencyWindow
from engines.serve.observe.log import Log
from engines.serve.observe.metrics import Metrics
from engines.serve.record.recorder import Recorder, RecordEvent
from engines.serve.record.tracing import make_tracer
from engines.serve.running.context import ServerContext, note_refusal
from engines.serve.settings import ServeSettings
from graphs.base.errors import UgsepError

__all__ = ["make_context"]


def make_context(settings: ServeSettings, slot: ModelSlot, log: Log, after: ExitStack) -> ServerContext:
    """Return the parts of a server, connected; the scheduler's workers are not started.

    ``after`` gets what is to be closed once the last request is answered.

    Raises:
        UgsepError: the folder for recordings is unusable, or a package for recording or tracing is missing.
    """
    metrics, window, misses = Metrics(), LatencyWindow(), MissReport()

    tracer = make_tracer(settings.traces)

    def refused(error: UgsepError, traceparent: str) -> None:
        note_refusal(metrics, window, tracer, error, code_of(error), traceparent)

    def missed(outcome: Outcome) -> None:
        if isinstance(outcome.result, Answer) and outcome.result.misses and outcome.request is not None:
            misses.record(outcome.job.routing_key, outcome.request.user)

    hooks: list[Callable[[Outcome], None]] = [metrics.observe, window.record, log.slow, missed]
    if tracer is not None:
        after.callback(tracer.close)
        hooks.append(tracer.record)
    if settings.record is not None:  # closed before the tracer, which may have to wait for its collector
        hooks.append(_recording(settings.record, settings, metrics, log, after))
    scheduler = Scheduler(
        slot,
        workers=settings.workers,
        queue=settings.queue,
        max_batch_delay=settings.max_batch_delay,
        on_outcome=hooks,
        on_refusal=refused,
        on_bug=log.bug,
    )
    metrics.watch(lambda: (scheduler.waiting, scheduler.running), lambda: _loaded(slot))
    return ServerContext(settings, slot, scheduler, Lifecycle(), metrics, window, log, tracer, misses=misses)


def _recording(
    folder: Path, settings: ServeSettings, metrics: Metrics, log: Log, after: ExitStack
) -> Callable[[Outcome], None]:
    def noted(event: RecordEvent) -> None:
        if event.kind == "stopped":
            log.warning("recording stopped", reason=event.reason)
        elif event.kind == "recorded":
            metrics.count("recorded", "Requests kept in files.", by=event.requests)
        else:
            metrics.count("record_dropped", "Requests chosen to be kept, but not kept.", by=event.requests)

    noted(RecordEvent("recorded"))  # the counters are there, and 0, from the start
    noted(RecordEvent("dropped"))
    recorder = Recorder(folder, settings.record_share, settings.record_limit, noted)
    after.callback(recorder.close)

    def record(outcome: Outcome) -> None:
        answer = outcome.result
        if isinstance(answer, Answer) and outcome.request is not None and not outcome.job.users_only:
            recorder.offer(outcome.request, answer.outputs, answer.served_by.version)

    return record


def _loaded(slot: ModelSlot) -> list[ServedBundle]:
    try:
        current = slot.current()
    except NotReady:
        return []
    previous = slot.previous()
    return [current] if previous is None else [current, previous]

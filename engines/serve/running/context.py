"""What the parts of a running server share."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from engines.serve.core.lifecycle import Lifecycle
from engines.serve.core.misses import MissReport
from engines.serve.core.model_slot import ModelSlot
from engines.serve.core.outcome import code_of
from engines.serve.core.scheduler import Scheduler
from engines.serve.observe.latency_window import LatencyWindow
from engines.serve.observe.log import Log
from engines.serve.observe.metrics import Metrics
from engines.serve.record.tracing import Tracer
from engines.serve.settings import ServeSettings
from engines.serve.swap.swap_log import SwapLog
from graphs.base.errors import UgsepError

__all__ = ["ServerContext", "note_refusal"]


@dataclass(frozen=True)
class ServerContext:
    """One server: its settings, the bundles it serves, its queue, and what it counts."""

    settings: ServeSettings
    slot: ModelSlot
    scheduler: Scheduler
    lifecycle: Lifecycle
    metrics: Metrics
    window: LatencyWindow
    log: Log
    tracer: Tracer | None = None
    swaps: SwapLog = field(default_factory=SwapLog)
    misses: MissReport = field(default_factory=MissReport)
    started: float = field(default_factory=time.time)  # unix seconds

    def refused(self, error: UgsepError, code: int | None = None, traceparent: str = "") -> None:
        """Count and trace a request that no worker saw: unusable envelope, unknown model, body over the limit.

        The refusals of ``Scheduler.check`` and ``submit`` are counted already.
        """
        code = code_of(error) if code is None else code
        note_refusal(self.metrics, self.window, self.tracer, error, code, traceparent)


def note_refusal(
    metrics: Metrics, window: LatencyWindow, tracer: Tracer | None, error: UgsepError, code: int, traceparent: str
) -> None:
    """Tell everything that counts or traces requests of one that was refused before it was queued."""
    metrics.refused(error, code)
    window.refused(code)
    if tracer is not None:
        tracer.refused(error, code, traceparent)

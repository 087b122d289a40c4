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
from engines.serve.settings import ServeSettings
from engines.serve.swap.swap_log import SwapLog
from graphs.base.errors import UgsepError

__all__ = ["ServerContext"]


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
    swaps: SwapLog = field(default_factory=SwapLog)
    misses: MissReport = field(default_factory=MissReport)
    started: float = field(default_factory=time.time)  # unix seconds

    def refused(self, error: UgsepError, code: int | None = None) -> None:
        """Count a request that no worker saw: an unusable envelope, an unknown model, a body over the limit.

        The refusals of ``Scheduler.check`` and ``submit`` are counted already.
        """
        code = code_of(error) if code is None else code
        self.metrics.refused(error, code)
        self.window.refused(code)

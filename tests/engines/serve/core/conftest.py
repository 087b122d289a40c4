"""A slot with the tiny bundle, and schedulers over it that are closed at the end of a test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engines.serve.core.model_slot import ModelSlot
from engines.serve.core.scheduler import Scheduler
from tests.engines.serve.core.jobs import PATIENCE, Seen, load


@pytest.fixture
def slot(built_bundle: Path) -> Iterator[ModelSlot]:
    made = ModelSlot()
    made.switch(load(built_bundle))
    yield made
    made.close(PATIENCE)


@pytest.fixture
def start(slot: ModelSlot) -> Iterator[Callable[..., tuple[Scheduler, Seen]]]:
    started = []

    def make(workers: int = 1, queue: int = 8, delay: float = 0.0) -> tuple[Scheduler, Seen]:
        seen = Seen()
        scheduler = Scheduler(
            slot,
            workers=workers,
            queue=queue,
            max_batch_delay=delay,
            on_outcome=(seen.outcomes.append,),
            on_refusal=lambda error, traceparent: seen.refusals.append(error),
            on_bug=seen.bugs.append,
        )
        scheduler.start()
        started.append(scheduler)
        return scheduler, seen

    yield make
    for scheduler in started:
        scheduler.close()

"""Jobs as a protocol would make them, over a real ranker."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from engines import Ranker
from engines.bundle.manifest import read_manifest
from engines.serve.core.job import Answer
from engines.serve.core.outcome import Outcome
from engines.serve.core.scheduler import Scheduler
from engines.serve.core.served_bundle import ServedBundle
from engines.serve.score_request import ScoreRequest
from graphs.base.errors import UgsepError
from tests import tiny

PATIENCE = 20.0  # seconds for what takes milliseconds on an idle machine


@dataclass
class SimpleJob:
    """A job whose request is ready, or made by ``make`` in the worker."""

    request: ScoreRequest
    deadline: float | None = None
    make: Callable[[ServedBundle], ScoreRequest] | None = None
    users_only: bool = False
    routing_key: str = ""
    traceparent: str = ""
    arrived: float = field(default_factory=time.monotonic)
    results: list[Answer | Exception] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)

    def decode(self, served: ServedBundle) -> ScoreRequest:
        return self.request if self.make is None else self.make(served)

    def answer(self, answer: Answer) -> None:
        self.results.append(answer)
        self.done.set()

    def fail(self, error: Exception) -> None:
        self.results.append(error)
        self.done.set()

    def result(self) -> Answer | Exception:
        assert self.done.wait(PATIENCE)
        (only,) = self.results
        return only


def load(bundle: Path, version: str = "0" * 12) -> ServedBundle:
    """Load a bundle as if its build had found that sharing calls never pays: tests say themselves when it does."""
    manifest = dataclasses.replace(read_manifest(bundle), batching=())
    return ServedBundle("tiny", version, bundle, manifest, Ranker.from_bundle(bundle))


def request(candidates: int = 5, seed: int = 0, deadline: float | None = None) -> ScoreRequest:
    user, items = tiny.user_and_items(candidates, seed)
    return ScoreRequest(user, items, deadline=deadline)


class Blocked:
    """Keeps the worker that decodes it busy until ``release`` is called."""

    def __init__(self) -> None:
        self.entered, self.released = threading.Event(), threading.Event()
        self.job = SimpleJob(request(), make=self._wait)

    def _wait(self, served: ServedBundle) -> ScoreRequest:
        self.entered.set()
        assert self.released.wait(PATIENCE)
        return self.job.request


def blocked(scheduler: Scheduler) -> Blocked:
    made = Blocked()
    scheduler.submit(made.job)
    assert made.entered.wait(PATIENCE)
    return made


@dataclass
class Seen:
    outcomes: list[Outcome] = field(default_factory=list)
    refusals: list[UgsepError] = field(default_factory=list)
    bugs: list[BaseException] = field(default_factory=list)

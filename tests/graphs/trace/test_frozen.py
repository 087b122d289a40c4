"""Clocks and random numbers that change scores are named with their line; those that do not are no fault."""

from __future__ import annotations

import datetime
import os
import random
import time
import uuid
from collections.abc import Callable
from datetime import datetime as Moment  # another name for the same clock
from time import time as now

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from graphs.base.errors import UgsepError
from graphs.split.split import Split, split
from tests.suites import slow_but


class Scaled(nn.Module):
    """Scores times whatever a function returns at each call."""

    def __init__(self, factor: Callable[[], float | Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.factor, self.user, self.item = factor, nn.Linear(3, 5), nn.Linear(4, 5)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        factor = self.factor()
        return (self.user(user) * self.item(item) * factor).sum(1)


def made(factor: Callable[[], float | Tensor]) -> Split:
    return split(Scaled(factor).eval(), (torch.randn(7, 3), torch.randn(7, 4)), user=["user"], item=["item"])


class Held:
    """Something that keeps a generator, which it makes when it is first called."""

    def __init__(self) -> None:
        self.made: list[np.random.Generator] = []

    def __call__(self) -> float:
        if not self.made:
            self.made.append(np.random.default_rng(0))
        return float(self.made[0].random())


GENERATOR, PHILOX = np.random.default_rng(0), np.random.Generator(np.random.Philox(0))
RANDOM_STATE = np.random.RandomState(0)
CHANGING: dict[str, tuple[Callable[[], float | Tensor], str]] = {
    "time": (lambda: time.time() % 1000, r"time\(\)"),
    "whole seconds": (lambda: int(time.time()) % 1000, r"time\(\)"),
    "imported time": (lambda: now() % 1000, r"time\(\)"),
    "nanoseconds": (lambda: time.time_ns() // 10**9 % 1000, r"time_ns\(\)"),
    "hour of the day": (lambda: datetime.datetime.now().hour + 1, r"now\(\)"),
    "weekday": (lambda: Moment.now(datetime.UTC).weekday() + 1, r"now\(\)"),
    "date": (lambda: datetime.date.today().toordinal() % 1000, r"today\(\)"),
    "hour in UTC": (lambda: datetime.datetime.utcnow().hour + 1, r"utcnow\(\)"),
    "minute as text": (lambda: int(time.strftime("%M")) + 1, r"strftime\(\)"),
    "second of a text": (lambda: int(time.ctime()[17:19]) + 1, r"ctime\(\)"),
    "minute of a text": (lambda: int(time.asctime()[14:16]) + 1, r"asctime\(\)"),
    "a clock by number": (lambda: int(time.clock_gettime(time.CLOCK_REALTIME)) % 1000, r"clock_gettime\(\)"),
    "processor time": (lambda: int(time.process_time()) + 1, r"process_time\(\)"),
    "local time": (lambda: time.localtime().tm_min + 1, r"localtime\(\)"),
    "Python's random": (random.random, "random numbers"),
    "a random branch": (lambda: 1.0 if random.random() < 0.5 else 2.0, "random numbers"),
    "a random choice": (lambda: random.choice(range(100)), "random numbers"),
    "NumPy's random": (lambda: float(np.random.rand()), "random numbers"),
    "NumPy's Generator": (GENERATOR.random, "random numbers"),
    "NumPy's Generator of another kind": (PHILOX.normal, "random numbers"),
    "NumPy's RandomState": (RANDOM_STATE.randn, "random numbers"),
    "a generator of Python": (random.Random(0).random, "random numbers"),
    "a generator made at each call": (lambda: float(np.random.default_rng().random()), "random numbers"),
    "a generator made at the first call": (Held(), "random numbers"),
    "the system's random": (lambda: os.urandom(1)[0] / 256, r"urandom\(\)"),
    "a new UUID": (lambda: uuid.uuid4().int % 1000, "random numbers"),
    "a random vector": (lambda: torch.from_numpy(np.random.rand(5).astype(np.float32)), "random numbers"),
}


#: One of each source.
OF_EACH_KIND = ("time", "date", "a new UUID", "Python's random", "NumPy's Generator", "a random branch")


@pytest.mark.parametrize("name", slow_but(OF_EACH_KIND, CHANGING))
def test_what_a_trace_would_freeze_is_named_with_its_line(name: str) -> None:
    factor, named = CHANGING[name]
    random.seed(0)
    with pytest.raises(UgsepError, match=rf"changes with {named} at test_frozen\.py:\d+, which a trace") as caught:
        made(factor)
    assert str(caught.value).isprintable()


def test_state_that_changes_scores_is_refused() -> None:
    counted: list[int] = []

    def factor() -> float:
        counted.append(1)
        return float(len(counted))

    with pytest.raises(UgsepError, match="another 'output' when it is called again"):
        made(factor)


def test_a_model_that_times_itself_is_no_fault() -> None:
    spent: list[float] = []

    def factor() -> float:
        started = time.perf_counter()
        random.random()
        spent.append(time.perf_counter() - started)
        return 2.0

    made(factor)
    assert spent
    assert time.time() - now() < 1, "the clocks are as before"
    assert datetime.datetime is Moment

"""The scheduler over a real ranker: answers, refusals, deadlines, batches, drains and bugs."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from engines.bundle.manifest import BatchTiming
from engines.serve.core.job import Answer
from engines.serve.core.model_slot import ModelSlot
from engines.serve.core.outcome import Outcome
from engines.serve.core.scheduler import Scheduler
from engines.serve.core.served_bundle import ServedBundle
from engines.serve.errors import DeadlineExceeded, NotReady, QueueFull
from engines.serve.score_request import ScoreRequest
from graphs.base.errors import UgsepError
from tests import tiny
from tests.engines.serve.core.jobs import PATIENCE, SimpleJob, blocked, load, request


@pytest.fixture
def slot(built_bundle: Path) -> Iterator[ModelSlot]:
    made = ModelSlot()
    made.switch(load(built_bundle))
    yield made
    made.close(PATIENCE)


@dataclass
class Seen:
    outcomes: list[Outcome] = field(default_factory=list)
    refusals: list[UgsepError] = field(default_factory=list)
    bugs: list[BaseException] = field(default_factory=list)


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
            on_refusal=seen.refusals.append,
            on_bug=seen.bugs.append,
        )
        scheduler.start()
        started.append(scheduler)
        return scheduler, seen

    yield make
    for scheduler in started:
        scheduler.close()


def test_many_jobs_are_answered_with_the_scores_of_the_ranker(slot: ModelSlot, start) -> None:
    scheduler, seen = start(workers=3, queue=64)
    jobs = [SimpleJob(request(1 + seed % 9, seed)) for seed in range(60)]
    for job in jobs:
        scheduler.submit(job)
    ranker = slot.current().ranker
    for job in jobs:
        answer = job.result()
        assert isinstance(answer, Answer)
        for task, logits in ranker.score(job.request.user, job.request.items).items():
            np.testing.assert_array_equal(answer.outputs[task], logits)
    assert scheduler.drain(PATIENCE)
    assert (scheduler.waiting, scheduler.running) == (0, 0)
    assert [o.code for o in seen.outcomes] == [200] * 60
    assert seen.bugs == []


def test_a_full_queue_refuses_at_once_and_says_when_to_retry(start) -> None:
    scheduler, seen = start(queue=2)
    busy = blocked(scheduler)
    waiting = [SimpleJob(request(seed=s)) for s in (1, 2)]
    for job in waiting:
        scheduler.submit(job)
    assert (scheduler.waiting, scheduler.running) == (2, 1)
    for refuse in (scheduler.check, lambda: scheduler.submit(SimpleJob(request()))):
        with pytest.raises(QueueFull, match="2 requests are waiting, as many as the queue holds") as caught:
            refuse()
        assert caught.value.retry_after >= 1
    assert len(seen.refusals) == 2
    busy.released.set()
    assert all(isinstance(job.result(), Answer) for job in (busy.job, *waiting))
    scheduler.check()


def test_a_job_whose_deadline_passed_in_the_queue_is_not_run(start) -> None:
    scheduler, seen = start()
    busy = blocked(scheduler)
    late = SimpleJob(request(seed=1), deadline=time.monotonic() + 0.01)
    later = SimpleJob(request(seed=2, deadline=time.monotonic() + 0.01))  # known only when decoded
    for job in (late, later):
        scheduler.submit(job)
    time.sleep(0.02)
    busy.released.set()
    for job in (late, later):
        assert isinstance(job.result(), DeadlineExceeded)
    assert scheduler.drain(PATIENCE)
    assert [o.code for o in seen.outcomes] == [200, 504, 504]
    assert seen.outcomes[1].request is None, "it was not even decoded"


def test_what_the_client_got_wrong_fails_that_job_only(start) -> None:
    scheduler, seen = start()
    good, bad = SimpleJob(request()), SimpleJob(ScoreRequest({}, {}))

    def refuse(served: ServedBundle) -> ScoreRequest:
        raise UgsepError("input 'x' is malformed")

    malformed = SimpleJob(request(), make=refuse)
    for job in (malformed, bad, good):
        scheduler.submit(job)
    assert str(malformed.result()) == "input 'x' is malformed"
    assert isinstance(bad.result(), UgsepError)
    assert isinstance(good.result(), Answer)
    assert seen.bugs == []


def test_a_bug_costs_neither_the_worker_nor_an_answer(start) -> None:
    scheduler, seen = start()

    def crash(served: ServedBundle) -> ScoreRequest:
        raise ZeroDivisionError("a bug")

    class BadEncoder(SimpleJob):
        def answer(self, answer: Answer) -> None:
            raise KeyError("a bug of the encoder")

    for job in (SimpleJob(request(), make=crash), BadEncoder(request())):
        scheduler.submit(job)
        assert isinstance(job.result(), (ZeroDivisionError, KeyError))
    after = SimpleJob(request())
    scheduler.submit(after)
    assert isinstance(after.result(), Answer)
    assert scheduler.drain(PATIENCE)
    assert [type(b) for b in seen.bugs] == [ZeroDivisionError, KeyError]
    assert [o.code for o in seen.outcomes] == [500, 500, 200]


def test_a_drain_finishes_what_waits_and_refuses_what_comes(start) -> None:
    scheduler, _ = start()
    busy = blocked(scheduler)
    waiting = SimpleJob(request(seed=1))
    scheduler.submit(waiting)
    scheduler.stop_accepting()
    with pytest.raises(NotReady):
        scheduler.submit(SimpleJob(request()))
    assert not scheduler.drain(0.01)
    busy.released.set()
    assert scheduler.drain(PATIENCE)
    assert isinstance(busy.job.result(), Answer)
    assert isinstance(waiting.result(), Answer)


def test_closing_answers_what_still_waits(start) -> None:
    scheduler, _ = start()
    busy = blocked(scheduler)
    waiting = SimpleJob(request(seed=1))
    scheduler.submit(waiting)
    scheduler.close()
    assert isinstance(waiting.result(), NotReady)
    busy.released.set()
    assert isinstance(busy.job.result(), Answer)
    assert scheduler.drain(PATIENCE)


def test_nothing_loaded_is_not_ready() -> None:
    scheduler = Scheduler(ModelSlot(), workers=1, queue=1)
    with pytest.raises(NotReady):
        scheduler.check()


def test_a_user_is_warmed_without_candidates(slot: ModelSlot, start) -> None:
    scheduler, _ = start()
    user, _ = tiny.user_and_items(1)
    job = SimpleJob(ScoreRequest(user, {}), users_only=True)
    scheduler.submit(job)
    answer = job.result()
    assert isinstance(answer, Answer)
    for name, state in slot.current().ranker.user_state(user).items():
        np.testing.assert_array_equal(answer.outputs[name], state)
    assert slot.current().ranker.cache_info().misses == 1


def with_plan(served: ServedBundle, users: int, candidates: int, least: int = 2) -> ServedBundle:
    """The bundle as if its build had measured that ``least`` to ``users`` users should share a call."""
    sizes = [u for u in (2, 4, 8, 16) if u <= users]
    timings = tuple(BatchTiming(u, candidates, float(u), 1.0 if u >= least else 2.0 * u) for u in sizes)
    return dataclasses.replace(served, manifest=dataclasses.replace(served.manifest, batching=timings))


@pytest.mark.parametrize(("most", "candidates", "batches"), [(4, 5, [4, 2]), (16, 5, [6]), (4, 4, [1] * 6)])
def test_waiting_users_share_a_call_as_far_as_the_measurements_say(
    slot: ModelSlot, start, most: int, candidates: int, batches: list[int]
) -> None:
    slot.switch(with_plan(slot.current(), most, candidates))
    scheduler, seen = start()
    busy = blocked(scheduler)
    jobs = [SimpleJob(request(5, seed)) for seed in range(1, 6)]
    for job in jobs:
        scheduler.submit(job)
    busy.released.set()
    answers = [job.result() for job in (busy.job, *jobs)]
    assert scheduler.drain(PATIENCE)
    sizes = [answer.batch_users for answer in answers if isinstance(answer, Answer)]
    assert sizes == [size for size in batches for _ in range(size)]
    for job in jobs:
        answer = job.result()
        assert isinstance(answer, Answer)
        for task, logits in slot.current().ranker.score(job.request.user, job.request.items).items():
            np.testing.assert_allclose(answer.outputs[task], logits, rtol=1e-4, atol=1e-4)
    assert seen.bugs == []


@pytest.mark.parametrize(("waiting", "batches"), [(2, [1, 1, 1]), (3, [4]), (5, [6]), (9, [8, 1, 1])])
def test_users_who_are_too_few_to_pay_do_not_share_a_call(
    slot: ModelSlot, start, waiting: int, batches: list[int]
) -> None:
    slot.switch(with_plan(slot.current(), 8, 5, least=4))
    scheduler, seen = start(queue=16)
    busy = blocked(scheduler)
    jobs = [SimpleJob(request(5, seed)) for seed in range(1, waiting + 1)]
    for job in jobs:
        scheduler.submit(job)
    busy.released.set()
    sizes = [answer.batch_users for job in (busy.job, *jobs) if isinstance(answer := job.result(), Answer)]
    assert sizes == [size for size in batches for _ in range(size)]
    assert scheduler.drain(PATIENCE)
    assert [o.job for o in seen.outcomes] == [busy.job, *jobs]
    assert seen.bugs == []


def test_too_few_that_a_larger_request_leaves_are_put_back_in_order_and_decoded_once(slot: ModelSlot, start) -> None:
    slot.switch(with_plan(slot.current(), 8, 5, least=4))
    scheduler, seen = start(queue=16)
    busy, decoded = blocked(scheduler), []

    def counted(seed: int, candidates: int) -> SimpleJob:
        def decode(served: ServedBundle) -> ScoreRequest:
            decoded.append(seed)
            return request(candidates, seed)

        return SimpleJob(request(candidates, seed), make=decode)

    jobs = [counted(1, 5), counted(2, 5), counted(3, 9), counted(4, 5)]  # nine candidates were not measured
    for job in jobs:
        scheduler.submit(job)
    busy.released.set()
    assert [answer.batch_users for job in jobs if isinstance(answer := job.result(), Answer)] == [1] * 4
    assert scheduler.drain(PATIENCE)
    assert [o.job for o in seen.outcomes] == [busy.job, *jobs]
    assert decoded == [1, 2, 3, 4]


def test_one_who_waited_for_others_in_vain_does_not_wait_again(slot: ModelSlot, start) -> None:
    slot.switch(with_plan(slot.current(), 8, 5, least=4))
    scheduler, _ = start(delay=0.4)
    jobs = [SimpleJob(request(5, seed)) for seed in range(3)]
    for job in jobs:
        scheduler.submit(job)
    assert [answer.batch_users for job in jobs if isinstance(answer := job.result(), Answer)] == [1] * 3
    waits = [answer.seconds.queue for job in jobs if isinstance(answer := job.result(), Answer)]
    assert 0.35 <= waits[0]
    assert waits[2] - waits[0] < 0.35, "each waited for itself"


def test_callers_have_their_answers_before_the_hooks_are_told(slot: ModelSlot) -> None:
    slot.switch(with_plan(slot.current(), 8, 5))
    jobs = [SimpleJob(request(5, seed)) for seed in range(1, 4)]
    answered: list[int] = []
    scheduler = Scheduler(
        slot, workers=1, queue=8, on_outcome=(lambda outcome: answered.append(sum(j.done.is_set() for j in jobs)),)
    )
    scheduler.start()
    busy = blocked(scheduler)
    for job in jobs:
        scheduler.submit(job)
    busy.released.set()
    assert scheduler.drain(PATIENCE)
    scheduler.close()
    assert answered == [3] * 4  # 'busy' shares their call


def test_a_batch_keeps_to_the_engine_s_candidates_and_to_the_order(slot: ModelSlot, start) -> None:
    slot.switch(with_plan(slot.current(), 16, 64))
    scheduler, seen = start()
    busy = blocked(scheduler)  # 5 candidates; the engine takes 64
    warm = SimpleJob(ScoreRequest(request().user, {}), users_only=True)
    jobs = [SimpleJob(request(40, 1)), SimpleJob(request(30, 2)), warm, SimpleJob(request(5, 3))]
    for job in jobs:
        scheduler.submit(job)
    busy.released.set()
    sizes = [answer.batch_users for job in (busy.job, *jobs) if isinstance(answer := job.result(), Answer)]
    assert sizes == [2, 2, 1, 1, 1]
    assert scheduler.drain(PATIENCE)
    assert [o.job for o in seen.outcomes] == [busy.job, *jobs]


def test_a_bad_request_of_a_batch_fails_alone(slot: ModelSlot, start) -> None:
    slot.switch(with_plan(slot.current(), 16, 64))
    scheduler, seen = start()
    busy = blocked(scheduler)

    def refuse(served: ServedBundle) -> ScoreRequest:
        raise UgsepError("input 'x' is malformed")

    user, items = tiny.user_and_items(5)
    late = time.monotonic() + 0.01
    jobs = [
        SimpleJob(request(seed=1), make=refuse),
        SimpleJob(ScoreRequest({**user, "user_id": np.array([50])}, items)),
        SimpleJob(request(seed=2), deadline=late),
        SimpleJob(request(seed=3)),
    ]
    for job in jobs:
        scheduler.submit(job)
    time.sleep(0.02)
    busy.released.set()
    results = [type(job.result()) for job in (busy.job, *jobs)]
    assert results == [Answer, UgsepError, UgsepError, DeadlineExceeded, Answer]
    assert seen.bugs == []


def test_a_worker_waits_for_more_users_only_as_long_as_it_may(slot: ModelSlot, start) -> None:
    slot.switch(with_plan(slot.current(), 2, 64))
    scheduler, _ = start(delay=0.5)
    first, second = SimpleJob(request(seed=1)), SimpleJob(request(seed=2))
    scheduler.submit(first)
    time.sleep(0.05)
    scheduler.submit(second)
    assert [answer.batch_users for job in (first, second) if isinstance(answer := job.result(), Answer)] == [2, 2]
    alone = SimpleJob(request(seed=3))
    scheduler.submit(alone)
    answer = alone.result()
    assert isinstance(answer, Answer)
    assert answer.batch_users == 1
    assert 0.5 <= answer.seconds.queue < 10


def test_a_job_on_a_bundle_that_is_replaced_and_closed_runs_on_the_new_one(
    slot: ModelSlot, start, built_bundle: Path
) -> None:
    scheduler, seen = start()
    old = slot.current()
    decoded = []

    def decode(served: ServedBundle) -> ScoreRequest:
        decoded.append(served.version)
        if served is old:  # between decoding and scoring, the slowest moment for a swap
            slot.switch(load(built_bundle, "1" * 12))
            old.ranker.close()
        return request()

    job = SimpleJob(request(), make=decode)
    scheduler.submit(job)
    answer = job.result()
    assert isinstance(answer, Answer)
    assert answer.served_by.version == "1" * 12
    assert decoded == [old.version, "1" * 12]
    assert scheduler.drain(PATIENCE)
    assert [o.served.version for o in seen.outcomes if o.served] == ["1" * 12]


def test_a_hook_that_fails_is_a_bug_and_nothing_else(slot: ModelSlot) -> None:
    bugs: list[BaseException] = []

    def fails(outcome: Outcome) -> None:
        raise RuntimeError("a hook")

    scheduler = Scheduler(slot, workers=1, queue=4, on_outcome=(fails,), on_bug=bugs.append)
    scheduler.start()
    jobs = [SimpleJob(request(seed=s)) for s in range(2)]
    for job in jobs:
        scheduler.submit(job)
        assert isinstance(job.result(), Answer)
    assert scheduler.drain(PATIENCE)
    scheduler.close()
    assert [str(b) for b in bugs] == ["a hook"] * 2


def test_threads_that_submit_at_once_lose_and_mix_nothing(slot: ModelSlot, start) -> None:
    slot.switch(with_plan(slot.current(), 16, 9))
    scheduler, seen = start(workers=2, queue=8)
    expected = {
        seed: slot.current().ranker.score(request(5, seed).user, request(5, seed).items) for seed in range(12)
    }
    sent: list[list[tuple[int, SimpleJob]]] = [[] for _ in range(4)]
    refused = [0] * 4

    def client(number: int) -> None:
        for turn in range(60):
            seed = (number + turn) % 12
            job = SimpleJob(request(5, seed))
            try:
                scheduler.submit(job)
            except QueueFull:
                refused[number] += 1
                time.sleep(0.001)
                continue
            sent[number].append((seed, job))

    threads = [threading.Thread(target=client, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert scheduler.drain(PATIENCE)
    jobs = [pair for part in sent for pair in part]
    assert len(jobs) + sum(refused) == 240
    assert len(seen.refusals) == sum(refused)
    for seed, job in jobs:
        (answer,) = job.results
        assert isinstance(answer, Answer)
        for task, logits in expected[seed].items():
            np.testing.assert_allclose(answer.outputs[task], logits, rtol=1e-4, atol=1e-4)
    assert (scheduler.waiting, scheduler.running, seen.bugs) == (0, 0, [])

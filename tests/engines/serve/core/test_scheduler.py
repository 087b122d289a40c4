"""The scheduler over a real ranker: answers, refusals, deadlines, batches, drains and bugs."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from engines.serve.core.job import Answer
from engines.serve.core.model_slot import ModelSlot
from engines.serve.core.outcome import Outcome
from engines.serve.core.scheduler import Scheduler
from engines.serve.core.served_bundle import ServedBundle
from engines.serve.errors import DeadlineExceeded, NotReady, QueueFull
from engines.serve.score_request import ScoreRequest
from graphs.base.errors import UgsepError
from tests import tiny
from tests.engines.serve.core.jobs import PATIENCE, Blocked, SimpleJob, blocked, load, request


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


class Located(SimpleJob):
    """A job that notes the thread it is answered in."""

    thread = ""

    def answer(self, answer: Answer) -> None:
        self.thread = threading.current_thread().name
        super().answer(answer)


def test_a_caller_that_may_block_scores_itself_if_a_worker_would_be_idle(start) -> None:
    scheduler, seen = start()
    for _ in range(3):
        job = Located(request())
        scheduler.submit(job, here=True)
        assert (job.thread, len(job.results)) == (threading.current_thread().name, 1)
    busy = blocked(scheduler)
    queued = Located(request(seed=1))
    scheduler.submit(queued, here=True)  # returns at once: the only call at a time is that of 'busy'
    assert (queued.results, scheduler.waiting) == ([], 1)
    busy.released.set()
    assert isinstance(queued.result(), Answer)
    assert queued.thread.startswith("ugsep-worker")
    assert scheduler.drain(PATIENCE)
    assert (len(seen.outcomes), seen.bugs) == (5, [])


def test_what_came_while_a_caller_scored_is_taken_by_a_worker(start) -> None:
    scheduler, _ = start(queue=4)
    blocking = Blocked()
    caller = threading.Thread(target=lambda: scheduler.submit(blocking.job, here=True))
    caller.start()
    assert blocking.entered.wait(PATIENCE)
    waiting = [Located(request(seed=s)) for s in (1, 2, 3)]
    for job in waiting:
        scheduler.submit(job, here=True)
    assert (scheduler.waiting, scheduler.running) == (3, 1), "one call at a time, whichever thread makes it"
    blocking.released.set()
    assert all(isinstance(job.result(), Answer) for job in (blocking.job, *waiting))
    caller.join(PATIENCE)
    assert {job.thread.rpartition("-")[0] for job in waiting} == {"ugsep-worker"}
    assert scheduler.drain(PATIENCE)


def test_a_bug_in_a_caller_s_thread_leaves_the_place_free(start) -> None:
    scheduler, seen = start()

    def crash(served: ServedBundle) -> ScoreRequest:
        raise ZeroDivisionError("a bug")

    for _ in range(2):
        job = SimpleJob(request(), make=crash)
        scheduler.submit(job, here=True)
        assert isinstance(job.result(), ZeroDivisionError)
    after = Located(request())
    scheduler.submit(after, here=True)
    assert after.thread == threading.current_thread().name
    assert [type(b) for b in seen.bugs] == [ZeroDivisionError] * 2


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

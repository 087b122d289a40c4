"""The scheduler where users share calls: who shares with whom, who is put back, and that none is lost or mixed up."""

from __future__ import annotations

import dataclasses
import threading
import time

import numpy as np
import pytest

from engines.bundle.manifest import BatchTiming
from engines.serve.core.job import Answer
from engines.serve.core.model_slot import ModelSlot
from engines.serve.core.scheduler import Scheduler
from engines.serve.core.served_bundle import ServedBundle
from engines.serve.errors import DeadlineExceeded, QueueFull
from engines.serve.score_request import ScoreRequest
from graphs.base.errors import UgsepError
from tests import tiny
from tests.engines.serve.core.jobs import PATIENCE, SimpleJob, blocked, request


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


def test_a_call_that_waits_for_users_gets_those_that_come_and_leaves_the_rest_to_others(
    slot: ModelSlot, start
) -> None:
    slot.switch(with_plan(slot.current(), 2, 5))
    scheduler, seen = start(workers=2, delay=PATIENCE)
    jobs = [SimpleJob(request(5, seed)) for seed in range(4)]
    scheduler.submit(jobs[0])
    until = time.monotonic() + PATIENCE
    while scheduler.running < 1:
        assert time.monotonic() < until
    time.sleep(0.02)  # the worker waits for another user now
    for job in jobs[1:]:
        scheduler.submit(job, here=job is jobs[3])
    answers = [job.result() for job in jobs]
    assert [answer.batch_users for answer in answers if isinstance(answer, Answer)] == [2] * 4
    assert scheduler.drain(PATIENCE)
    assert seen.bugs == []


def test_callers_and_workers_lose_and_mix_nothing(slot: ModelSlot, start) -> None:
    """Many threads score, submit and wait for more users at once; none may be left waiting when a place is free."""
    slot.switch(with_plan(slot.current(), 4, 9))
    scheduler, seen = start(workers=2, queue=64, delay=0.001)
    expected = {
        seed: slot.current().ranker.score(request(5, seed).user, request(5, seed).items) for seed in range(12)
    }
    wrong: list[int] = []

    def client(number: int) -> None:
        for turn in range(50):
            seed = (number * 7 + turn) % 12
            job = SimpleJob(request(5, seed))
            scheduler.submit(job, here=(number + turn) % 3 > 0)
            answer = job.result()  # the next is sent when this one is answered: a lost wake-up would stop the client
            if not isinstance(answer, Answer) or not all(
                np.allclose(answer.outputs[task], logits, rtol=1e-4, atol=1e-4)
                for task, logits in expected[seed].items()
            ):
                wrong.append(seed)

    threads = [threading.Thread(target=client, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert scheduler.drain(PATIENCE)
    assert (wrong, len(seen.outcomes), scheduler.waiting, scheduler.running, seen.bugs) == ([], 400, 0, 0, [])


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

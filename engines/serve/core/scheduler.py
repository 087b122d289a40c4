"""The bounded queue in front of the ranker, and the threads that empty it."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from engines.serve.core.batching import BatchPlan, Sizes, plan_from
from engines.serve.core.entry import Entry, rows_of
from engines.serve.core.job import Answer, Job, StageSeconds
from engines.serve.core.model_slot import ModelSlot
from engines.serve.core.outcome import Outcome, code_of
from engines.serve.core.served_bundle import ServedBundle
from engines.serve.deadlines import check_deadline
from engines.serve.errors import NotReady, QueueFull, RankerClosed
from engines.serve.score_request import Scored
from graphs.base.errors import UgsepError

__all__ = ["Scheduler"]

Result = Answer | Exception


class Scheduler:
    """Queues jobs, up to ``queue`` of them, and scores them, ``workers`` calls at a time; thread-safe.

    Threads of its own score, or the caller's if that may block and a worker would be idle: two threads fewer to wake.
    A worker takes more waiting jobs into its item call where the bundle's measurements say that this pays, and waits
    up to ``max_batch_delay`` seconds for them. ``on_outcome`` are called in the worker's thread after each answer,
    ``on_refusal`` in the caller's with each error that ``check`` or ``submit`` raise and the request's traceparent,
    ``on_bug`` with exceptions that are our own fault; a hook that raises is one too.
    """

    def __init__(
        self,
        slot: ModelSlot,
        *,
        workers: int,
        queue: int,
        max_batch_delay: float = 0.0,
        on_outcome: Sequence[Callable[[Outcome], None]] = (),
        on_refusal: Callable[[UgsepError, str], None] = lambda error, traceparent: None,
        on_bug: Callable[[BaseException], None] = lambda error: None,
    ) -> None:
        self._slot, self._delay = slot, max_batch_delay
        self.workers, self.limit = workers, queue
        self._on_outcome, self._on_refusal, self._on_bug = tuple(on_outcome), on_refusal, on_bug
        self._lock = threading.Lock()
        self._arrived, self._idle = threading.Condition(self._lock), threading.Condition(self._lock)
        self._more = threading.Condition(self._lock)  # for those who wait for users to share their call
        self._queue: deque[Entry] = deque()
        self._running = 0
        self._scoring = self._collecting = 0  # threads that score, and those of them that wait for more users
        self._accepting, self._closed = True, False
        self._mean_seconds = 0.0  # of a request in a worker, smoothed
        self._plan: tuple[ServedBundle | None, BatchPlan] = (None, BatchPlan())
        self._threads: list[threading.Thread] = []

    @property
    def waiting(self) -> int:
        """The number of jobs in the queue."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """The number of jobs that workers took and have not answered yet."""
        return self._running

    def start(self) -> None:
        """Start the worker threads; they end with the process if ``close`` is not called."""
        for number in range(self.workers):
            thread = threading.Thread(target=self._work, name=f"ugsep-worker-{number}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def check(self, traceparent: str = "") -> None:
        """Refuse what ``submit`` would refuse now; for before the body of a request is read.

        Raises:
            NotReady: nothing is loaded, or the server no longer accepts.
            QueueFull: the queue is full.
        """
        error = self._refusal()
        if error is not None:
            self._on_refusal(error, traceparent)
            raise error

    def submit(self, job: Job, *, here: bool = False) -> None:
        """Queue a job; never blocks, unless ``here``: then it is answered in this thread if a worker would be idle.

        Raises:
            NotReady, QueueFull: as in ``check``; the job was not taken.
        """
        mine = None
        with self._lock:
            error = self._refusal()
            if error is None:
                self._queue.append(Entry(job))
                if here and len(self._queue) == 1 and self._scoring < self.workers and not self._collecting:
                    self._scoring += 1
                    mine = self._take()
                else:
                    self._wake()
        if error is not None:
            self._on_refusal(error, job.traceparent)
            raise error
        if mine is not None:
            try:
                self._run(mine)
            finally:
                with self._lock:
                    self._scoring -= 1
                    self._wake()

    def _wake(self) -> None:
        """Wake one who may take what waits, first one whose call waits for more users; the lock is the caller's."""
        if self._collecting:
            self._more.notify()
        elif self._queue and self._scoring < self.workers:
            self._arrived.notify()

    def stop_accepting(self) -> None:
        """Refuse new jobs from now on; what waits and runs goes on."""
        with self._lock:
            self._accepting = False

    def drain(self, seconds: float) -> bool:
        """Wait until nothing waits or runs, at most ``seconds``; return whether that was reached."""
        with self._lock:
            return self._idle.wait_for(lambda: not self._queue and not self._running, seconds)

    def close(self) -> None:
        """Refuse what still waits and end the idle workers; a worker in an engine call ends after it."""
        with self._lock:
            self._accepting, self._closed = False, True
            left = list(self._queue)
            self._queue.clear()
            self._running += len(left)
            self._arrived.notify_all()
            self._more.notify_all()
        stopped = NotReady("the server stopped before the request was scored; send it to another")
        self._settle([(entry, stopped) for entry in left])

    def retry_seconds(self) -> int:
        """Return in how many seconds what waits now will have been answered; at least 1."""
        return max(1, math.ceil(len(self._queue) * self._mean_seconds / self.workers))

    def _refusal(self) -> UgsepError | None:
        if not self._accepting:
            return NotReady("the server is shutting down; send the request to another replica")
        waiting = len(self._queue)
        if waiting >= self.limit:
            wait = self.retry_seconds()
            return QueueFull(f"{waiting} requests are waiting, as many as the queue holds; retry in {wait} s", wait)
        try:
            self._slot.current()
        except NotReady as error:
            return error
        return None

    def _work(self) -> None:
        first = self._next(0)
        while first is not None:
            self._run(first)
            first = self._next(1)

    def _run(self, first: Entry) -> None:
        batch = [first]
        try:
            self._serve(first, batch)
        except Exception as error:  # a bug of ours must cost neither the thread nor the callers' answers
            self._on_bug(error)
            self._settle([(entry, error) for entry in batch if not entry.finished])

    def _next(self, ended: int) -> Entry | None:
        """Return what to score next, None at the end; ``ended`` is how many calls the thread has just ended."""
        with self._lock:
            self._scoring -= ended
            while not self._queue or self._scoring >= self.workers:
                if self._closed:
                    return None
                self._arrived.wait()
            self._scoring += 1
            entry = self._take()
            self._wake()
            return entry

    def _take(self) -> Entry:
        entry = self._queue.popleft()
        self._running += 1
        if not entry.taken:
            entry.taken = time.monotonic()
        return entry

    def _serve(self, first: Entry, batch: list[Entry]) -> None:
        """Score the first entry, and those that may share its call; they are appended to ``batch``."""
        while True:
            try:
                served = self._slot.current()
            except NotReady as error:
                self._settle([(entry, error) for entry in batch])
                return
            ready = [entry for entry in batch if self._prepared(entry, served)]
            if ready and len(batch) == 1 and not first.job.users_only:
                self._add_more(served, batch, ready)
            again = self._score(served, ready) if ready else []
            if not again:
                return
            batch[:] = again  # on the bundle that replaced this one

    def _prepared(self, entry: Entry, served: ServedBundle) -> bool:
        """Decode an entry for a bundle, unless it was; on an error it is finished."""
        if entry.served is served and entry.request is not None:
            return True
        job, entry.served = entry.job, served
        try:
            check_deadline(job.deadline, "a worker was free")
            before = time.monotonic()
            entry.request = request = job.decode(served)
            entry.codec += time.monotonic() - before
            entry.candidates = rows_of(request.items)
            entry.users = rows_of(request.user) if request.user_index is not None else 1
            check_deadline(request.deadline, "it could be scored")  # it may hold its own
        except UgsepError as error:
            self._settle([(entry, error)])
            return False
        except Exception as error:
            self._on_bug(error)
            self._settle([(entry, error)])
            return False
        return True

    def _add_more(self, served: ServedBundle, batch: list[Entry], ready: list[Entry]) -> None:
        """Take further jobs while users and candidates stay within the plan and the engine's limits.

        What was taken is put back if it turns out to be fewer users than pay.
        """
        plan, ranker = self._plan_for(served), served.ranker
        first = ready[0]
        users, candidates = first.users, first.candidates
        sizes = self._sizes(plan, served, first)
        if not self._delay and users + len(self._queue) < sizes.least:
            return
        until = first.taken + self._delay  # one that was put back has waited already
        while users < sizes.most:
            entry = self._take_more(until)
            if entry is None:
                break
            batch.append(entry)
            if not self._prepared(entry, served):
                continue
            own = self._sizes(plan, served, entry)
            limit = Sizes(max(sizes.least, own.least), min(sizes.most, own.most))
            too_many = ranker.max_candidates and candidates + entry.candidates > ranker.max_candidates
            if entry.job.users_only or users + entry.users > limit.most or too_many:
                batch.remove(entry)
                self._put_back([entry])
                break
            ready.append(entry)
            users, candidates, sizes = users + entry.users, candidates + entry.candidates, limit
        if len(ready) > 1 and users < sizes.least:
            self._put_back(ready[1:])
            batch[:] = ready[:] = [first]

    def _sizes(self, plan: BatchPlan, served: ServedBundle, entry: Entry) -> Sizes:
        """Return how many users may share a call with an entry's; one if the engine takes no more."""
        most = served.ranker.max_users
        if not served.ranker.takes_index:
            return Sizes()
        sizes = plan.sizes_for(-(-entry.candidates // max(1, entry.users)))
        if not most or sizes.most <= most:
            return sizes
        return Sizes(sizes.least, most) if sizes.least <= most else Sizes()

    def _take_more(self, until: float) -> Entry | None:
        with self._lock:
            while not self._queue:
                left = until - time.monotonic() if self._delay else 0.0
                if left <= 0 or self._closed:
                    return None
                self._collecting += 1
                self._more.wait(left)
                self._collecting -= 1
            entry = self._take()
            self._wake()  # of several that came at once, this call may have no place for the next
            return entry

    def _put_back(self, entries: Sequence[Entry]) -> None:
        """Return entries to the head of the queue, decoded as they are; other workers may take them at once."""
        with self._lock:
            if not self._closed:
                self._running -= len(entries)
                self._queue.extendleft(reversed(entries))
                self._wake()
                return
        stopped = NotReady("the server stopped before the request was scored; send it to another")
        self._settle([(entry, stopped) for entry in entries])

    def _plan_for(self, served: ServedBundle) -> BatchPlan:
        known, plan = self._plan
        if known is not served:
            plan = plan_from(served.manifest.batching)
            self._plan = (served, plan)
        return plan

    def _score(self, served: ServedBundle, ready: list[Entry]) -> list[Entry]:
        """Score entries and finish them; return those whose bundle was closed and replaced in the meantime."""
        started = time.monotonic()
        results = self._call(served, ready)
        spent = (time.monotonic() - started) / len(ready)
        self._mean_seconds += 0.1 * (spent - self._mean_seconds)
        again, settled = [], list[tuple[Entry, Result]]()
        for entry, result in zip(ready, results, strict=True):
            if isinstance(result, RankerClosed) and self._replaced(served):
                again.append(entry)
                continue
            if isinstance(result, Exception):
                if not isinstance(result, UgsepError):
                    self._on_bug(result)
                settled.append((entry, result))
                continue
            queued = max(0.0, started - entry.job.arrived - entry.codec)
            seconds = StageSeconds(queued, result.user_seconds, result.item_seconds)
            users = result.batch_users
            settled.append((entry, Answer(served, result.scores, result.hits, result.misses, users, seconds)))
        self._settle(settled)
        return again

    def _call(self, served: ServedBundle, ready: list[Entry]) -> Sequence[Scored | Exception]:
        requests = [entry.request for entry in ready if entry.request is not None]
        try:
            if ready[0].job.users_only:
                warmed = served.ranker.warm(requests[0].user, requests[0].deadline)
                users = warmed.hits + warmed.misses
                return [Scored(warmed.states, warmed.hits, warmed.misses, warmed.seconds, 0.0, users)]
            return served.ranker.score_requests(requests)
        except RankerClosed as error:
            return [error] * len(ready)
        except Exception as error:
            if len(ready) == 1:
                return [error]
            self._on_bug(error)  # of one request or of the batch: the others must not suffer for either
            return [self._call(served, [entry])[0] for entry in ready]

    def _replaced(self, served: ServedBundle) -> bool:
        try:
            return self._slot.current() is not served
        except NotReady:
            return False

    def _settle(self, results: Sequence[tuple[Entry, Result]]) -> None:
        """Deliver results, each exactly once, and tell the hooks when the last is delivered: callers wait for it."""
        outcomes = [self._deliver(entry, result) for entry, result in results]
        for outcome in outcomes:
            for hook in self._on_outcome:
                try:
                    hook(outcome)
                except Exception as error:
                    self._on_bug(error)
        with self._lock:
            self._running -= len(outcomes)
            if not self._running and not self._queue:
                self._idle.notify_all()

    def _deliver(self, entry: Entry, result: Result) -> Outcome:
        entry.finished = True
        job = entry.job
        before = time.monotonic()
        try:
            if isinstance(result, Answer):
                try:
                    job.answer(result)
                except Exception as error:
                    self._on_bug(error)
                    result = error
            if isinstance(result, Exception):
                job.fail(result)
        except Exception as error:
            self._on_bug(error)
        ended = time.monotonic()
        return Outcome(
            job,
            entry.request,
            result,
            entry.served,
            entry.candidates,
            200 if isinstance(result, Answer) else code_of(result),
            entry.taken or before,
            entry.codec + ended - before,
            ended,
        )

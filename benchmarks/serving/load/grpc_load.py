"""A gRPC load generator over one channel, with serialized requests made before the clock starts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
import numpy as np
from numpy.typing import NDArray

from benchmarks.serving.load.http_load import Address
from benchmarks.serving.load.pacing import Pacer
from benchmarks.serving.load.pool import Entry, Pool
from benchmarks.serving.load.tally import BROKEN, Tally
from benchmarks.serving.load.wire import grpc_outputs

METHOD = "/inference.GRPCInferenceService/ModelInfer"
#: HTTP statuses that mean the same, so that both protocols are counted alike.
_AS_HTTP = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
OPTIONS = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))


async def grpc_open_loop(
    address: Address,
    pool: Pool,
    picks: NDArray[np.int64],
    arrivals: NDArray[np.float64],
    *,
    grace: float = 30.0,
    stop: Callable[[], bool] | None = None,
) -> Tally:
    """Send a request at each arrival, whatever became of those before; see ``http_load.open_loop``."""
    tally = Tally(pool)
    _ = [entry.grpc for entry in pool.entries]  # made now, not when they are due
    async with grpc.aio.insecure_channel(f"{address.host}:{address.port}", options=OPTIONS) as channel:
        call: Any = channel.unary_unary(METHOD)
        tasks: set[asyncio.Task[None]] = set()
        started = time.perf_counter() + 0.01

        async def ask(entry: Entry, due: float) -> None:
            sent = time.perf_counter()
            try:
                message = await call(entry.grpc, timeout=grace, metadata=(("x-user-key", entry.key),))
            except grpc.RpcError as error:
                code: Any = error.code()
                tally.add(_AS_HTTP.get(code, BROKEN), due, sent, time.perf_counter())
                tally.say(f"{code}: {error.details()}")
                return
            done = time.perf_counter()
            tally.add(200, due, sent, done)
            tally.check(entry, *grpc_outputs(message))

        with Pacer() as pacer:
            for pick, offset in zip(picks, arrivals, strict=True):
                due = started + float(offset)
                await pacer.until(due)
                tally.planned += 1
                task = asyncio.get_running_loop().create_task(ask(pool.entries[int(pick)], due))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                if stop is not None and stop():
                    break
        if tasks:
            await asyncio.wait(tasks, timeout=grace)
    return tally

"""A server of one model in a few lines, whose mistakes are known, to test what counts them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import numpy as np

from benchmarks.serving.load.http_load import Address
from benchmarks.serving.load.pool import Pool

#: What happens to the n-th request: 'answer', 'wrong', 'refuse', 'bare refusal', 'drop', or 'silent'.
Behave = Callable[[int], str]


def answer_bytes(version: str, scores: dict[str, np.ndarray]) -> bytes:
    """Return an HTTP answer with binary outputs."""
    outputs = [
        {"name": t, "datatype": "FP32", "shape": [len(v)], "parameters": {"binary_data_size": v.nbytes}}
        for t, v in scores.items()
    ]
    header = {"model_name": "m", "model_version": version, "outputs": outputs}
    text = json.dumps(header, separators=(",", ":")).encode()
    body = text + b"".join(v.tobytes() for v in scores.values())
    head = f"HTTP/1.1 200 OK\r\ninference-header-content-length: {len(text)}\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


@asynccontextmanager
async def small_server(pool: Pool, version: str, behave: Behave, seconds: float = 0.0) -> AsyncIterator[Address]:
    """Answer the requests of a pool from its references, after ``seconds``."""
    known = {entry.http.split(b"\r\n\r\n", 1)[1]: entry for entry in pool.entries}
    seen = 0
    tasks: set[asyncio.Task[None] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal seen
        tasks.add(asyncio.current_task())
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().split(b"\r\ncontent-length:")[1].split(b"\r\n")[0])
                entry = known[await reader.readexactly(length)]
                what, seen = behave(seen), seen + 1
                await asyncio.sleep(seconds)
                if what == "drop":
                    writer.transport.abort()
                    return
                if what == "silent":
                    continue
                scores = {task: np.array(v) for task, v in entry.expected[version].items()}
                if what == "wrong":
                    next(iter(scores.values()))[0] += 1.0
                refusal = b"HTTP/1.1 429 Too Many\r\n%scontent-length: 0\r\n\r\n"
                writer.write(
                    refusal % (b"" if what == "bare refusal" else b"retry-after: 1\r\n")
                    if "refus" in what
                    else answer_bytes(version, scores)
                )
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=1 << 24)
    try:
        yield Address("127.0.0.1", server.sockets[0].getsockname()[1])
    finally:
        server.close()
        await asyncio.wait([task for task in tasks if task is not None], timeout=5)  # the caller closes its end

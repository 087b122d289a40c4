"""POST /v2/models/M/infer as a plain ASGI application: refusals come before the body is read."""

from __future__ import annotations

import asyncio
import time
from functools import partial

import msgspec
from starlette.types import Receive, Scope, Send

from engines.serve.errors import NotReady, QueueFull
from engines.serve.oip.http.answers import AnswerCache, Body
from engines.serve.oip.http.codec import HeaderCache, Received, decode_for
from engines.serve.oip.http.envelope import Envelope, too_large, too_slow
from engines.serve.oip.infer_job import Call, Codec, InferJob
from engines.serve.oip.refusals import refusal
from engines.serve.oip.signature import Signatures
from engines.serve.running.context import ServerContext
from graphs.base.errors import UgsepError

__all__ = ["HttpInfer", "send_error"]

#: After a refusal the rest of the body is read and dropped for so long and so far: a caller that still sends would
#: otherwise meet a reset connection instead of the answer.
_LINGER_SECONDS, _LINGER_BYTES = 2.0, 64 << 20
_JSON, _BINARY = (b"content-type", b"application/json"), (b"content-type", b"application/octet-stream")


class HttpInfer:
    """Inference over HTTP; tensors are decoded and encoded in the workers' threads."""

    def __init__(self, context: ServerContext, signatures: Signatures) -> None:
        self._context, self._signatures = context, signatures
        self._headers, self._answers = HeaderCache(), AnswerCache()
        self._max_body, self._body_timeout = context.settings.max_body, context.settings.body_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send, model: str, version: str) -> None:
        """Answer one request."""
        envelope = Envelope()
        try:
            envelope.read(scope["headers"], self._max_body)
            submitted = await self._submit(envelope, receive, model, version)
        except UgsepError as error:
            if not isinstance(error, (NotReady, QueueFull)):  # the scheduler counts those itself
                self._context.refused(error, refusal(error).http, envelope.traceparent)
            await send_error(error, send, None if envelope.ends else receive)
            return
        if submitted is None:
            return  # the caller hung up while it sent
        job, answered = submitted
        if not await _awaited(answered, receive):
            job.abandon()  # a worker that has not started yet skips it
            return
        result = answered.result()
        if isinstance(result, Body):
            await _send_body(result, send)
        else:
            await send_error(result, send)

    async def _submit(
        self, envelope: Envelope, receive: Receive, model: str, version: str
    ) -> tuple[InferJob[Body], asyncio.Future[Body | Exception]] | None:
        """Read the body and queue the job, unless it would be refused anyway; None if the caller hung up."""
        context = self._context
        context.scheduler.check(envelope.traceparent)
        self._signatures.of(context.slot.current()).is_user_model(model, version)
        body = await self._body(receive, envelope)
        if body is None:
            return None
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[Body | Exception] = loop.create_future()
        call = Call(time.monotonic(), envelope.timeout, envelope.routing_key, envelope.traceparent)
        received = Received(body, 0, envelope.json_bytes)
        codec = Codec(partial(decode_for, model, version, received, self._headers), self._answers.encode)
        deliver = partial(_deliver, loop, answered)
        job = InferJob(call, codec, self._signatures, deliver, context.settings.request_timeout)
        context.scheduler.submit(job)
        return job, answered

    async def _body(self, receive: Receive, envelope: Envelope) -> bytes | None:
        """Return the whole body, or None if the caller hung up.

        Raises:
            BodyTooLarge: more than ``max_body`` bytes, whatever Content-Length said.
            BodyTooSlow: not whole after ``body_timeout`` seconds.
        """
        try:
            async with asyncio.timeout(self._body_timeout):
                message = await receive()
                first: bytes = message.get("body", b"")
                if message["type"] == "http.request" and not message.get("more_body", False):
                    envelope.ends = True
                    return first
                chunks = bytearray(first)
                while message["type"] == "http.request" and message.get("more_body", False):
                    if len(chunks) > self._max_body:
                        raise too_large(self._max_body)
                    message = await receive()
                    chunks += message.get("body", b"")
        except TimeoutError as error:
            envelope.ends = False
            raise too_slow(self._body_timeout) from error
        if message["type"] != "http.request":
            return None
        if len(chunks) > self._max_body:
            raise too_large(self._max_body)
        envelope.ends = True
        return bytes(chunks)


async def _awaited(answered: asyncio.Future[Body | Exception], receive: Receive) -> bool:
    """Wait for the answer; return whether it came before the caller hung up."""
    gone = asyncio.ensure_future(_hang_up(receive))
    try:
        await asyncio.wait((answered, gone), return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
    return answered.done()


async def _hang_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue


async def send_error(error: Exception, send: Send, unread: Receive | None = None) -> None:
    """Answer with an error's line.

    ``unread`` is given if the rest of a body is still on its way and must not be waited for: the answer is sent at
    once, what arrives within a short time is dropped, and the connection is closed. A connection closed at once would
    be reset, and the caller, still sending, might never see the answer.
    """
    refused = refusal(error)
    body = msgspec.json.encode({"error": refused.line})
    headers = [_JSON, (b"content-length", b"%d" % len(body))]
    if refused.retry_after:
        headers.append((b"retry-after", b"%d" % refused.retry_after))
    if unread is not None:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": refused.http, "headers": headers})
    if unread is not None:
        await send({"type": "http.response.body", "body": body, "more_body": True})
        await _drop(unread)
        body = b""
    await send({"type": "http.response.body", "body": body})


async def _drop(receive: Receive) -> None:
    """Read the rest of a body, within bounds."""
    left = _LINGER_BYTES
    try:
        async with asyncio.timeout(_LINGER_SECONDS):
            while left > 0:
                message = await receive()
                if message["type"] != "http.request" or not message.get("more_body", False):
                    return
                left -= len(message.get("body", b""))
    except TimeoutError:
        return  # slow enough


async def _send_body(body: Body, send: Send) -> None:
    headers = [
        _BINARY if body.json_bytes is not None else _JSON,
        (b"content-length", b"%d" % len(body.content)),
    ]
    if body.json_bytes is not None:
        headers.append((b"inference-header-content-length", b"%d" % body.json_bytes))
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body.content})


def _deliver(
    loop: asyncio.AbstractEventLoop, answered: asyncio.Future[Body | Exception], result: Body | Exception
) -> None:
    """Hand a result from a worker's thread to the event loop."""
    try:
        loop.call_soon_threadsafe(_settle, answered, result)
    except RuntimeError:
        return  # the loop has ended, and with it the connection
    # Give the interpreter's lock to the loop, so that it writes the answer before this thread counts it: the answer
    # left 0.06 ms earlier in a server that scores for 11 ms in between.
    time.sleep(0)


def _settle(answered: asyncio.Future[Body | Exception], result: Body | Exception) -> None:
    if not answered.done():  # cancelled if the server gave up on the connection
        answered.set_result(result)

"""POST /v2/models/M/infer without the application: what is plain goes from the socket to the workers and back."""

from __future__ import annotations

import http
import re
import time
from collections.abc import Callable, Sequence
from functools import partial

import msgspec

from engines.serve.core.served_bundle import ServedBundle
from engines.serve.errors import NotReady, QueueFull
from engines.serve.oip.http.answers import AnswerCache, Body
from engines.serve.oip.http.codec import HeaderCache, Received, decode_for
from engines.serve.oip.http.envelope import MOST_DIGITS, Envelope, too_slow
from engines.serve.oip.infer_job import Call, Codec, InferJob
from engines.serve.oip.refusals import refusal
from engines.serve.oip.signature import Signatures
from engines.serve.running.context import ServerContext
from graphs.base.errors import UgsepError

__all__ = ["DirectInfer"]

_PLAIN = re.compile(r"[\w.~-]+", re.ASCII)  # a name that stands in a URL as it is
_MOST_REFUSALS = 64
_NO_URLS: dict[bytes, tuple[str, str]] = {}


class DirectInfer:
    """Admits inference requests by their URL and headers.

    Requests for the model that serves, with a body of known length, are taken; of the others only those are answered
    here that are refused because the queue is full. Whatever else is special (another model, a malformed header, a
    chunked body, a server that drains) is left to ``HttpInfer``, which answers it in full.
    """

    def __init__(self, context: ServerContext, signatures: Signatures) -> None:
        self.context, self.signatures = context, signatures
        self.headers, self.answers = HeaderCache(), AnswerCache()
        self._max_body = context.settings.max_body
        self._refusals: dict[str, bytes] = {}
        self._urls: tuple[ServedBundle | None, dict[bytes, tuple[str, str]]] = (None, _NO_URLS)

    def __call__(self, url: bytes, headers: Sequence[tuple[bytes, bytes]]) -> DirectCall | bytes | None:
        """Return the request to be handed on, a whole response that refuses it, or None for the application."""
        context = self.context
        if not context.lifecycle.ready:
            return None
        if context.scheduler.waiting >= context.scheduler.limit:
            return self._refuse(url, headers)
        target = self._targets().get(url)
        if target is None:
            return None
        envelope = Envelope()
        try:
            envelope.read(headers, self._max_body)
        except UgsepError:
            return None
        return DirectCall(self, envelope, *target) if envelope.ends else None

    def _refuse(self, url: bytes, headers: Sequence[tuple[bytes, bytes]]) -> bytes | None:
        length = traceparent = b""
        for name, value in headers:
            if name == b"content-length":
                length = value
            elif name == b"traceparent":
                traceparent = value
        known = length.isdigit() and len(length) <= MOST_DIGITS and int(length) <= self._max_body
        if not known or not url.endswith(b"/infer"):
            return None
        try:
            self.context.scheduler.check(traceparent.decode("latin-1"))
        except QueueFull as error:
            return self._response(error)
        except NotReady:
            return None
        return None

    def _response(self, error: QueueFull) -> bytes:
        """Return the whole response of a refusal; of so many in a row there are few different ones."""
        line = str(error)
        known = self._refusals.get(line)
        if known is None:
            if len(self._refusals) >= _MOST_REFUSALS:
                self._refusals.clear()
            self._refusals[line] = known = error_response(error)
        return known

    def _targets(self) -> dict[bytes, tuple[str, str]]:
        """Return model and version ('' for any) by the URLs that need no decoding."""
        try:
            served = self.context.slot.current()
        except NotReady:
            return _NO_URLS
        known, urls = self._urls
        if known is not served:
            urls = {}
            for model in (served.name, served.user_model):
                if _PLAIN.fullmatch(model):
                    base = f"/v2/models/{model}"
                    urls[f"{base}/infer".encode()] = (model, "")
                    urls[f"{base}/versions/{served.version}/infer".encode()] = (model, served.version)
            self._urls = (served, urls)
        return urls


class DirectCall:
    """One inference request; implements ``Exchange`` of the listener."""

    __slots__ = ("_envelope", "_infer", "_job", "_model", "_version")

    def __init__(self, infer: DirectInfer, envelope: Envelope, model: str, version: str) -> None:
        self._infer, self._envelope, self._model, self._version = infer, envelope, model, version
        self._job: InferJob[Body] | None = None

    def start(self, data: bytes, at: int, respond: Callable[[bytes], None]) -> None:
        """Queue the request; the answer is encoded and written in the worker's thread."""
        infer, envelope = self._infer, self._envelope
        call = Call(time.monotonic(), envelope.timeout, envelope.routing_key, envelope.traceparent)
        body = Received(data, at, envelope.json_bytes)
        decode = partial(decode_for, self._model, self._version, body, infer.headers)
        default = infer.context.settings.request_timeout
        deliver = partial(_deliver, respond)
        self._job = InferJob(call, Codec(decode, infer.answers.encode), infer.signatures, deliver, default)
        try:
            infer.context.scheduler.submit(self._job)
        except Exception as error:
            if not isinstance(error, UgsepError):
                infer.context.log.bug(error)
            respond(error_response(error))

    def too_slow(self) -> bytes:
        """Return the refusal of a body that did not arrive in time."""
        error = too_slow(self._infer.context.settings.body_timeout)
        self._infer.context.refused(error, refusal(error).http, self._envelope.traceparent)
        return error_response(error)

    def abandon(self) -> None:
        """Let a worker that has not started yet skip the request."""
        if self._job is not None:
            self._job.abandon()


def error_response(error: Exception) -> bytes:
    """Return a whole response with an error's line."""
    refused = refusal(error)
    line = msgspec.json.encode({"error": refused.line})
    retry = b"retry-after: %d\r\n" % refused.retry_after if refused.retry_after else b""
    return b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%b\r\n%b" % (
        refused.http,
        http.HTTPStatus(refused.http).phrase.encode(),
        len(line),
        retry,
        line,
    )


def _deliver(respond: Callable[[bytes], None], result: Body | Exception) -> None:
    respond(error_response(result) if isinstance(result, Exception) else _response(result))


def _response(body: Body) -> bytes:
    content = body.content
    if body.json_bytes is None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
        return head % (len(content), content)
    return (
        b"HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ncontent-length: %d\r\n"
        b"inference-header-content-length: %d\r\n\r\n%b"
    ) % (len(content), body.json_bytes, content)

"""What the headers of an inference request say."""

from __future__ import annotations

from collections.abc import Iterable

from engines.serve.oip.refusals import BodyTooLarge, BodyTooSlow
from engines.serve.oip.request import seconds_of
from graphs.base.errors import UgsepError

__all__ = ["MOST_DIGITS", "Envelope", "too_large", "too_slow"]

MOST_DIGITS = 15  # of a number in a header
_LONGEST_KEY = 512


class Envelope:
    """What the headers of a request say.

    ``ends`` is whether the connection can serve another request without the body being read: it has been, or it is
    small, of known length, and certain to follow (no 'Expect: 100-continue'), so that the HTTP parser drops it.
    """

    __slots__ = ("ends", "json_bytes", "routing_key", "timeout", "traceparent")

    def __init__(self) -> None:
        self.ends = False
        self.json_bytes: int | None = None
        self.routing_key = self.traceparent = ""
        self.timeout = 0.0

    def read(self, headers: Iterable[tuple[bytes, bytes]], max_body: int) -> None:
        """Read the headers that matter.

        Raises:
            UgsepError: a malformed or repeated header, or a compressed body.
            BodyTooLarge: Content-Length is over ``max_body``.
        """
        length = -1
        seen: list[bytes] = []
        waits = False
        for name, value in headers:
            if name == b"content-length":
                length = _digits(name, value)
                self.ends = length <= max_body and not waits
            elif name == b"inference-header-content-length":
                self.json_bytes = _digits(name, value)
                seen.append(name)
            elif name == b"x-request-timeout-ms":
                self.timeout = seconds_of(_digits(name, value) * 1000)
                seen.append(name)
            elif name == b"x-user-key":
                self.routing_key = value[:_LONGEST_KEY].decode("latin-1")
            elif name == b"traceparent":
                self.traceparent = value[:_LONGEST_KEY].decode("latin-1")
            elif name == b"expect":
                waits, self.ends = True, False
            elif name == b"content-encoding" and value.lower() not in (b"", b"identity"):
                raise UgsepError("the body is compressed (Content-Encoding); send it as it is")
        if len(seen) > 1 and len(set(seen)) != len(seen):
            raise UgsepError(f"header {max(seen, key=seen.count).decode()} is given twice; send it once")
        if length > max_body:
            raise too_large(max_body)


def too_large(max_body: int) -> BodyTooLarge:
    """Return the error of a body over the limit."""
    return BodyTooLarge(f"the body is larger than {max_body} bytes; send fewer candidates, or raise --max-body")


def too_slow(seconds: float) -> BodyTooSlow:
    """Return the error of a body that was not there in time."""
    return BodyTooSlow(f"the body was not complete after {seconds:g} s; send it faster, or raise --body-timeout")


def _digits(name: bytes, value: bytes) -> int:
    if not (value.isdigit() and len(value) <= MOST_DIGITS):
        raise UgsepError(f"header {name.decode()} is not a whole number of at most {MOST_DIGITS} digits; correct it")
    return int(value)

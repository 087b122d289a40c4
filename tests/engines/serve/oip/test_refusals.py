"""Every error has a code in both protocols and one printable line."""

from __future__ import annotations

import grpc
import pytest

from engines.serve.errors import DeadlineExceeded, NotReady, QueueFull, RankerClosed, UnknownModel
from engines.serve.oip.refusals import BodyTooLarge, BodyTooSlow, refusal
from graphs.base.errors import UgsepError


@pytest.mark.parametrize(
    ("error", "http", "code"),
    [
        (UgsepError("x"), 400, "INVALID_ARGUMENT"),
        (UnknownModel("x"), 400, "NOT_FOUND"),
        (BodyTooSlow("x"), 408, "DEADLINE_EXCEEDED"),
        (BodyTooLarge("x"), 413, "RESOURCE_EXHAUSTED"),
        (QueueFull("x", 2.5), 429, "RESOURCE_EXHAUSTED"),
        (NotReady("x"), 503, "UNAVAILABLE"),
        (RankerClosed("x"), 503, "UNAVAILABLE"),
        (DeadlineExceeded("x"), 504, "DEADLINE_EXCEEDED"),
    ],
)
def test_codes(error: UgsepError, http: int, code: str) -> None:
    found = refusal(error)
    assert (found.http, found.grpc, found.line) == (http, code, "x")
    assert hasattr(grpc.StatusCode, code)
    assert found.retry_after == (3 if http == 429 else 0)


def test_a_bug_says_nothing_of_itself() -> None:
    found = refusal(KeyError("secret"))
    assert (found.http, found.grpc, found.line) == (500, "INTERNAL", "internal error")


def test_lines_are_printable_and_bounded() -> None:
    assert refusal(UgsepError("a\x1b[31m\u202eb\nsecond")).line == "a\\x1b[31m\\u202eb second"
    assert len(refusal(UgsepError("a" * 10_000)).line) < 600

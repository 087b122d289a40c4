from __future__ import annotations

import io
import json
import logging
import time
from pathlib import Path

import pytest

from engines.serve.core.job import Answer, StageSeconds
from engines.serve.core.outcome import Outcome
from engines.serve.observe.log import MOST_CHARACTERS, make_log
from tests.engines.serve.core.jobs import SimpleJob, load, request

NASTY = "line\nfeed\r\x1b[31mred\x00 \ud800 ünï\u2028end"


@pytest.mark.parametrize("as_json", [False, True])
def test_whatever_is_logged_is_one_printable_line(as_json: bool) -> None:
    stream = io.StringIO()
    log, handler = make_log(stream, as_json)
    log.info(NASTY, reason=NASTY, error=ValueError(NASTY), path=Path("/a\nb"), number=1.5, nan=float("nan"))
    logger = logging.Logger("another library")
    logger.addHandler(handler)
    try:
        raise RuntimeError(NASTY)
    except RuntimeError:
        logger.exception("it said %s", NASTY)
    lines = stream.getvalue().split("\n")
    assert (len(lines), lines[2]) == (3, "")
    assert all(line.isascii() and line.isprintable() for line in lines)
    if as_json:
        first, second = map(json.loads, lines[:2])
        assert (first["event"], first["reason"], first["number"], first["nan"]) == (NASTY, NASTY, 1.5, None)
        assert (second["level"], second["error"]) == ("error", "RuntimeError")


def test_text_is_quoted_only_where_it_must_be() -> None:
    stream = io.StringIO()
    log, _ = make_log(stream)
    log.warning("swap", to="abc", reason="a b", empty="", ready=True, seconds=0.25)
    assert stream.getvalue().split(" ", 1)[1] == 'warning swap to=abc reason="a b" empty="" ready=true seconds=0.25\n'


def test_a_long_value_is_cut() -> None:
    stream = io.StringIO()
    log, _ = make_log(stream, as_json=True)
    log.info("x", reason="y" * 100_000)
    assert len(json.loads(stream.getvalue())["reason"]) == MOST_CHARACTERS + 3


def test_a_bug_is_logged_with_its_place_but_not_with_what_it_quotes() -> None:
    stream = io.StringIO()
    log, _ = make_log(stream)
    try:
        raise KeyError("user 4711")
    except KeyError as error:
        log.bug(error)
    line = stream.getvalue()
    assert "error=KeyError" in line
    assert "test_log.py:" in line
    assert "4711" not in line


def test_a_bug_that_another_library_reports_is_logged_with_its_place_too() -> None:
    stream = io.StringIO()
    logger = logging.Logger("uvicorn.error")
    logger.addHandler(make_log(stream)[1])
    try:
        raise KeyError("user 4711")
    except KeyError as error:
        logger.error("Exception in ASGI application\n", exc_info=error)
    line = stream.getvalue()
    assert "error Exception in ASGI application error=KeyError" in line
    assert "test_log.py:" in line
    assert "4711" not in line


def outcome(bundle: Path, seconds: float, fails: bool = False) -> Outcome:
    now = time.monotonic()
    job = SimpleJob(request(), arrived=now - seconds, routing_key="user-4711")
    served = load(bundle, "a" * 12)
    result = ValueError("4711") if fails else Answer(served, {}, 0, 1, 4, StageSeconds(0.01, 0.02, 0.03))
    return Outcome(job, job.request, result, served, 5, 500 if fails else 200, now - 0.05, 0.001, now)


def test_only_slow_requests_are_logged_with_the_time_of_each_stage(built_bundle: Path) -> None:
    stream = io.StringIO()
    log, _ = make_log(stream, as_json=True, slow_ms=50)
    log.slow(outcome(built_bundle, 0.04))
    log.slow(outcome(built_bundle, 0.06))
    log.slow(outcome(built_bundle, 0.07, fails=True))
    slow, failed = map(json.loads, stream.getvalue().splitlines())
    assert slow["event"] == "slow request"
    assert (slow["queue_ms"], slow["user_ms"], slow["item_ms"], slow["codec_ms"]) == (10, 20, 30, 1)
    assert (slow["candidates"], slow["user_cached"], slow["batch_users"], slow["version"]) == (5, False, 4, "a" * 12)
    assert failed["code"] == 500
    assert "4711" not in stream.getvalue()


def test_no_limit_logs_no_request(built_bundle: Path) -> None:
    stream = io.StringIO()
    make_log(stream)[0].slow(outcome(built_bundle, 9.0))
    assert stream.getvalue() == ""


def test_a_broken_stream_costs_lines_and_nothing_else() -> None:
    stream = io.StringIO()
    log, handler = make_log(stream)
    stream.close()
    log.info("lost")
    log.info("lost too")
    assert vars(handler)["lost"] == 2

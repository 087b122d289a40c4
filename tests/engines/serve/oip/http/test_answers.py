"""Answers hold what was asked for, whether their text is made anew or known."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from engines.serve.core.job import Answer, StageSeconds
from engines.serve.core.served_bundle import ServedBundle
from engines.serve.oip.http import answers
from engines.serve.oip.http.answers import AnswerCache, encode_answer
from engines.serve.oip.request import Reply
from tests.engines.serve.oip.local_server import load, read_answer


@pytest.fixture(scope="module")
def served(built_bundle: Path) -> Iterator[ServedBundle]:
    made = load(built_bundle)
    yield made
    made.ranker.close()


@pytest.mark.parametrize("binary", [True, False])
def test_answers_hold_what_was_asked_for(served: ServedBundle, binary: bool) -> None:
    rng = np.random.default_rng(0)
    outputs = {name: rng.standard_normal(5).astype(np.float32) for name in ("a", 'b"\n')}
    answer = Answer(served, outputs, 1, 0, 2, StageSeconds(1e-3, 0.0, 2.5e-3))
    body = encode_answer(answer, Reply("tiny", 'i"d', None, binary))
    read = read_answer(None if body.json_bytes is None else str(body.json_bytes), body.content)
    for name, value in outputs.items():
        np.testing.assert_array_equal(read["arrays"][name], value)
    assert read["parameters"] == {
        "user_cached": True,
        "batch_users": 2,
        "queue_us": 1000,
        "user_us": 0,
        "item_us": 2500,
    }
    body = encode_answer(answer, Reply("tiny", "", (("a", True),), binary))
    read = read_answer(str(body.json_bytes), body.content)
    assert list(read["arrays"]) == ["a"]


def test_an_answer_with_a_known_text_is_the_one_encoded_anew(served: ServedBundle) -> None:
    known, reply = AnswerCache(), Reply("tiny", binary=True)
    for rows in (5, 3, 5, 5):
        for names in (("a", "b%d"), ("c", "b%d"), ("a",)):
            for dtype in (np.float32, np.int32):  # as many bytes: only the text tells them apart
                outputs = {name: np.arange(rows).astype(dtype) for name in names}
                answer = Answer(served, outputs, 1, rows % 2, 2, StageSeconds(1e-3, 0.0, rows * 1e-3))
                for one in (reply, Reply("tiny", "i", None, True), Reply("tiny"), Reply("tiny", "", (("a", True),))):
                    if one.outputs is None or "a" in names:
                        assert known.encode(answer, one) == encode_answer(answer, one)


def test_the_number_of_known_texts_is_bounded(served: ServedBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "_MOST", 4)
    known = AnswerCache()
    answer = Answer(served, {"a": np.zeros(3, np.float32)}, 1, 0, 1, StageSeconds(0.0, 0.0, 0.0))
    for number in range(20):  # each reply's text only: the objects of dropped ones may reuse an identity
        reply = Reply(f"model-{number}", binary=True)
        assert known.encode(answer, reply) == encode_answer(answer, reply)
        assert len(known._kept) <= 4

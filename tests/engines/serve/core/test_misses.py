"""The report on which user features change between two misses."""

from __future__ import annotations

import threading

import numpy as np

from engines.serve.core import misses
from engines.serve.core.misses import MissReport


def user(user_id: int, clock: int = 0, age: float = 1.0) -> dict[str, np.ndarray]:
    return {
        "user_id": np.array([user_id]),
        "clock": np.array([clock]),
        "age": np.full((1, 3), age, np.float32),
    }


def test_the_feature_that_changes_is_named() -> None:
    report = MissReport()
    for turn in range(10):
        report.record("anna", user(1, clock=turn, age=float(turn >= 5)))
        report.record("ben", user(2, clock=turn))
    assert report.features() == [
        {"feature": "clock", "share": 1.0, "count": 18},
        {"feature": "age", "share": round(1 / 18, 4), "count": 1},
    ]


def test_a_user_that_was_only_evicted_changes_nothing() -> None:
    report = MissReport()
    report.record("anna", user(1))
    report.record("anna", user(1))
    assert report.features() == []
    report.record("anna", user(1, clock=5))
    assert report.features() == [{"feature": "clock", "share": 0.5, "count": 1}]


def test_another_dtype_or_shape_is_a_change_and_a_new_feature_is_not() -> None:
    report = MissReport()
    report.record("anna", {"a": np.zeros(1, np.int64), "b": np.zeros((1, 2), np.float32)})
    report.record("anna", {"a": np.zeros(1, np.float64), "b": np.zeros((1, 1, 2), np.float32), "c": np.zeros(1)})
    assert {found["feature"] for found in report.features()} == {"a", "b"}


def test_requests_without_a_key_or_of_several_users_are_ignored() -> None:
    report = MissReport()
    several = {name: np.repeat(value, 2, axis=0) for name, value in user(1).items()}
    for turn in range(3):
        report.record("", user(1, clock=turn))
        report.record("anna", {**several, "clock": np.full(2, turn)})
    assert report.features() == []


def test_the_memory_is_bounded_and_the_least_recent_keys_go() -> None:
    report = MissReport(limit=3)
    for key in "abcd":
        report.record(key, user(1, clock=0))
    assert len(report._last) == 3
    report.record("a", user(1, clock=1))  # forgotten: nothing to compare with
    assert report.features() == []
    report.record("d", user(1, clock=1))
    assert report.features() == [{"feature": "clock", "share": 1.0, "count": 1}]


def test_no_key_and_no_value_is_kept() -> None:
    report = MissReport()
    report.record("anna.secret@example.com", {"code": np.frombuffer(b"topsecret-value!", np.int64)[:1]})
    ((key, features),) = report._last.items()
    assert len(key) == 16
    assert b"anna" not in key
    assert all(len(value) == 8 for value in features.values())
    assert MissReport()._digest(b"anna", 16) != MissReport()._digest(b"anna", 16), "each process has its salt"


def test_older_misses_count_less(monkeypatch) -> None:
    monkeypatch.setattr(misses, "_WINDOW", 100)
    report = MissReport()
    for turn in range(101):
        report.record("anna", user(1, clock=turn))
    for _ in range(49):
        report.record("anna", user(1, clock=100))
    assert report.features() == [{"feature": "clock", "share": round(50 / 99, 4), "count": 50}]


def test_several_threads_count_every_miss() -> None:
    report = MissReport()

    def work(name: str) -> None:
        for turn in range(200):
            report.record(name, user(1, clock=turn))

    threads = [threading.Thread(target=work, args=(f"user {number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert report.features() == [{"feature": "clock", "share": 1.0, "count": 4 * 199}]


def test_any_key_is_hashed() -> None:
    report = MissReport()
    for key in ("\udcff", "ü", "x" * 100_000):
        report.record(key, user(1))
    assert len(report._last) == 3

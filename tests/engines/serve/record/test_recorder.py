"""Recorded requests are valid request files, written whole, off the request path, within a limit."""

from __future__ import annotations

import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest

from engines.bundle.bundle import Bundle
from engines.serve.ranker import Ranker
from engines.serve.record.recorder import Recorder, RecordEvent
from engines.serve.record.shard import VERSION_KEY
from engines.serve.score_request import ScoreRequest
from graphs.base.errors import UgsepError
from quant.calibration.calibrate import calibrate
from tests import tiny

ROOT = Path(__file__).parents[4]
GIB = 1 << 30


class Events:
    """What a recorder said, in order."""

    def __init__(self) -> None:
        self.seen: list[RecordEvent] = []

    def __call__(self, event: RecordEvent) -> None:
        self.seen.append(event)

    def count(self, kind: str) -> int:
        return sum(event.requests for event in self.seen if event.kind == kind)

    @property
    def reasons(self) -> list[str]:
        return [event.reason for event in self.seen if event.kind == "stopped"]


def request(candidates: int, seed: int = 0, users: int = 1) -> ScoreRequest:
    made = [tiny.user_and_items(candidates, seed + u) for u in range(users)]
    user = {name: np.concatenate([u[name] for u, _ in made]) for name in made[0][0]}
    index = np.random.default_rng(seed).integers(0, users, candidates) if users > 1 else None
    return ScoreRequest(user, made[0][1], index)


def scores(candidates: int, seed: int = 0) -> dict[str, np.ndarray]:
    return {"like": np.random.default_rng(seed + 1000).standard_normal(candidates).astype(np.float32)}


def files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if not p.name.startswith("."))


def wait_for(condition: object, seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.01)


@pytest.fixture
def events() -> Events:
    return Events()


@pytest.fixture
def recorder(tmp_path: Path, events: Events) -> Iterator[Recorder]:
    made = Recorder(tmp_path / "kept", 1.0, GIB, events)
    yield made
    made.close()


def test_what_was_offered_is_read_back_with_the_scores(
    recorder: Recorder, events: Events, tmp_path: Path, built_bundle: Path
) -> None:
    offered = [(request(n, n), scores(n, n)) for n in (1, 7, 3)]
    for asked, answered in offered:
        recorder.offer(asked, answered, "abc")
    assert recorder.close()
    assert (events.count("recorded"), events.count("dropped"), events.reasons) == (3, 0, [])
    (file,) = files(tmp_path / "kept")
    assert parquet.read_schema(file).metadata[VERSION_KEY.encode()] == b"abc"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    table = parquet.read_table(file)
    read = list(Bundle.open(built_bundle).read_requests([tmp_path / "kept"]))
    assert [r.candidates for r in read] == [1, 7, 3]
    assert [r.labels for r in read] == [{}, {}, {}], "served scores must not be read as labels"
    for (asked, _), got in zip(offered, read, strict=True):
        for name, value in asked.user.items():
            np.testing.assert_array_equal(got.user[name], value)
        for name, value in asked.items.items():
            np.testing.assert_array_equal(got.items[name], value)
    served = np.concatenate([answered["like"] for _, answered in offered])
    np.testing.assert_array_equal(table.column("served.like").to_numpy(), served)
    assert set(table.column_names) == {"request_id", "served.like", *(f.name for f in tiny.FEATURES)}


def test_a_request_of_several_users_is_one_request_per_user(
    recorder: Recorder, tmp_path: Path, built_bundle: Path
) -> None:
    asked, answered = request(20, users=4), scores(20)
    recorder.offer(asked, answered, "abc")
    recorder.close()
    read = list(Bundle.open(built_bundle).read_requests([tmp_path / "kept"]))
    assert asked.user_index is not None
    assert [r.candidates for r in read] == np.bincount(asked.user_index).tolist()
    for user, got in enumerate(read):
        mine = asked.user_index == user
        np.testing.assert_array_equal(got.user["age"], asked.user["age"][user : user + 1])
        np.testing.assert_array_equal(got.items["affinity"], asked.items["affinity"][mine])


def test_calibration_accepts_a_recorded_folder(recorder: Recorder, tmp_path: Path, built_bundle: Path) -> None:
    for n in range(5, 15):
        recorder.offer(request(n, n), scores(n, n), "abc")
    recorder.close()
    opened = Bundle.open(built_bundle)
    statistics = calibrate(opened.onnx("user"), opened.onnx("item"), opened.read_requests([tmp_path / "kept"]))
    assert statistics


def test_served_scores_are_those_of_the_bundle(recorder: Recorder, tmp_path: Path, built_bundle: Path) -> None:
    with Ranker.from_bundle(built_bundle) as ranker:
        for n in (3, 9):
            asked = request(n, n)
            recorder.offer(asked, ranker.score(asked.user, asked.items), "abc")
        recorder.close()
        read = list(Bundle.open(built_bundle).read_requests([tmp_path / "kept"]))
        table = parquet.read_table(tmp_path / "kept")
        again = np.concatenate([ranker.score(r.user, r.items)["like"] for r in read])
    np.testing.assert_array_equal(table.column("served.like").to_numpy(), again)


def test_ids_are_unique_across_files_and_processes(tmp_path: Path, events: Events) -> None:
    for _ in range(3):
        made = Recorder(tmp_path, 1.0, GIB, events)
        for n in range(5):
            made.offer(request(2, n), scores(2), "abc")
        made.close()
    assert len(files(tmp_path)) == 3
    ids = parquet.read_table(tmp_path, columns=["request_id"]).column("request_id").to_numpy()
    found, counts = np.unique(ids, return_counts=True)
    assert (len(found), set(counts)) == (15, {2})
    assert found.min() >= 0


def test_the_share_is_kept(tmp_path: Path, events: Events) -> None:
    asked, answered = request(1), scores(1)
    for share, least, most in ((0.0, 0, 0), (0.1, 120, 290)):
        made = Recorder(tmp_path / str(share), share, GIB, events)
        for _ in range(2000):
            made.offer(asked, answered, "abc")
        made.close()
        kept = sum(parquet.read_metadata(f).num_rows for f in files(tmp_path / str(share)))
        assert least <= kept <= most


def test_a_new_version_or_other_columns_start_a_new_file(
    recorder: Recorder, tmp_path: Path, built_bundle: Path
) -> None:
    recorder.offer(request(3), scores(3), "old")
    recorder.offer(request(3), scores(3), "new")
    recorder.offer(request(3), {**scores(3), "share": scores(3)["like"]}, "new")
    recorder.close()
    schemas = [parquet.read_schema(f) for f in files(tmp_path / "kept")]
    found = {(s.metadata[VERSION_KEY.encode()].decode(), "served.share" in s.names) for s in schemas}
    assert found == {("old", False), ("new", False), ("new", True)}
    assert len(list(Bundle.open(built_bundle).read_requests([tmp_path / "kept"]))) == 3


def test_a_file_is_closed_after_its_time(tmp_path: Path, events: Events) -> None:
    made = Recorder(tmp_path, 1.0, GIB, events, file_seconds=0.05)
    for n in range(2):
        made.offer(request(3), scores(3), "abc")
        wait_for(lambda expected=n + 1: events.count("recorded") == expected)
    assert len(files(tmp_path)) == 2
    made.close()


def test_a_file_is_closed_at_its_size(tmp_path: Path, events: Events, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engines.serve.record.recorder._FILE_BYTES", 20_000)
    monkeypatch.setattr("engines.serve.record.shard._GROUP_BYTES", 4_000)
    made = Recorder(tmp_path, 1.0, GIB, events)
    for n in range(40):
        made.offer(request(50, n), scores(50, n), "abc")
    made.close()
    sizes = [f.stat().st_size for f in files(tmp_path)]
    assert len(sizes) > 2
    assert max(sizes) < 40_000
    assert any(parquet.read_metadata(f).num_row_groups > 1 for f in files(tmp_path))
    assert sum(parquet.read_metadata(f).num_rows for f in files(tmp_path)) == 2000


def test_a_writer_that_is_behind_costs_requests_and_no_time(
    tmp_path: Path, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engines.serve.record.recorder._WAITING_REQUESTS", 5)
    held = threading.Event()

    def blocked(event: RecordEvent) -> None:
        if event.kind == "recorded":
            held.wait(20)
        events(event)

    made = Recorder(tmp_path, 1.0, GIB, blocked, file_seconds=0.0)
    made.offer(request(2), scores(2), "abc")
    wait_for(lambda: files(tmp_path))
    started = time.perf_counter()
    for n in range(20):
        made.offer(request(2, n), scores(2), "abc")
    assert time.perf_counter() - started < 1.0
    assert events.count("dropped") == 15
    held.set()
    assert made.close()
    assert events.count("recorded") == 6


def test_many_threads_lose_nothing(tmp_path: Path, events: Events, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engines.serve.record.recorder._WAITING_REQUESTS", 50)
    made = Recorder(tmp_path, 1.0, GIB, events, file_seconds=0.02)
    asked, answered = request(2), scores(2)
    threads = [
        threading.Thread(target=lambda: [made.offer(asked, answered, "abc") for _ in range(500)]) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made.close()
    assert events.count("recorded") + events.count("dropped") == 4000
    assert sum(parquet.read_metadata(f).num_rows for f in files(tmp_path)) == 2 * events.count("recorded") > 0


def test_what_is_offered_after_the_end_is_dropped(recorder: Recorder, events: Events) -> None:
    assert recorder.close()
    recorder.offer(request(2), scores(2), "abc")
    assert (events.count("dropped"), events.reasons) == (1, [])
    assert recorder.close(), "closing twice is harmless"


def test_requests_to_warm_a_user_are_not_kept(recorder: Recorder, tmp_path: Path, events: Events) -> None:
    recorder.offer(ScoreRequest(request(2).user, {}), {"state": np.zeros((1, 4), np.float32)}, "abc")
    recorder.close()
    assert (events.seen, files(tmp_path / "kept")) == ([], [])


def test_a_request_that_would_not_fit_in_memory_is_dropped(
    recorder: Recorder, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engines.serve.record.recorder._LARGEST_REQUEST", 5_000)
    recorder.offer(request(60), scores(60), "abc")
    recorder.offer(request(2), scores(2), "abc")
    recorder.close()
    assert (events.count("recorded"), events.count("dropped"), events.reasons) == (1, 1, [])


def test_the_folder_keeps_to_its_limit_and_says_so_once(tmp_path: Path, events: Events) -> None:
    made = Recorder(tmp_path, 1.0, 20_000, events, file_seconds=0.0)
    for n in range(200):
        made.offer(request(30, n), scores(30, n), "abc")
    wait_for(lambda: events.reasons)
    made.offer(request(30), scores(30), "abc")
    assert made.close()
    assert 0 < sum(f.stat().st_size for f in tmp_path.iterdir()) <= 20_000
    (reason,) = events.reasons
    assert "20000 bytes" in reason
    assert "--record-limit" in reason
    assert "\n" not in reason
    assert events.count("recorded") + events.count("dropped") == 201
    again = Events()
    made = Recorder(tmp_path, 1.0, 100, again)
    assert "limit of 100 bytes" in again.reasons[0]
    made.offer(request(3), scores(3), "abc")
    assert made.close()
    assert (again.count("dropped"), len(again.reasons)) == (1, 1)


def test_a_folder_that_goes_away_is_made_again(recorder: Recorder, events: Events, tmp_path: Path) -> None:
    (tmp_path / "kept").rename(tmp_path / "moved")
    recorder.offer(request(3), scores(3), "abc")
    recorder.close()
    assert len(files(tmp_path / "kept")) == 1
    assert events.count("recorded") == 1


def test_a_folder_that_turns_into_a_file_ends_recording_and_nothing_else(
    recorder: Recorder, events: Events, tmp_path: Path
) -> None:
    (tmp_path / "kept").rmdir()
    (tmp_path / "kept").write_text("")
    recorder.offer(request(3), scores(3), "abc")
    assert recorder.close()
    assert (events.count("recorded"), events.count("dropped"), len(events.reasons)) == (0, 1, 1)
    recorder.offer(request(3), scores(3), "abc")
    assert events.count("dropped") == 2


def test_a_feature_named_like_our_columns_ends_recording(recorder: Recorder, events: Events) -> None:
    asked = request(3)
    recorder.offer(ScoreRequest(asked.user, {**asked.items, "request_id": np.arange(3)}), scores(3), "abc")
    recorder.close()
    assert events.reasons == ["feature 'request_id' has the name of another column of a recorded file; rename it"]


def test_a_folder_that_cannot_be_used_is_an_error_at_the_start(tmp_path: Path, events: Events) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UgsepError, match=r"^--record '.*file.*': .*; give a folder to write to$"):
            Recorder(folder, 1.0, GIB, events)


def test_without_pyarrow_the_error_names_the_extra(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from pathlib import Path\n"
        "from engines.serve.record.recorder import Recorder\n"
        "from graphs.base.errors import UgsepError\n"
        "try: Recorder(Path(sys.argv[1]), 1.0, 1 << 20, print)\n"
        "except UgsepError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "recording requires package 'pyarrow'; run: pip install 'ugsep[record]'\n"
    assert list(tmp_path.iterdir()) == []


DISK_FULL = """
import resource, sys
from pathlib import Path
import numpy as np
from engines.serve.record.recorder import Recorder
from engines.serve.score_request import ScoreRequest
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
events = []
made = Recorder(Path(sys.argv[1]), 1.0, 1 << 30, events.append)
asked = ScoreRequest({"u": np.arange(1)}, {"i": np.random.default_rng(0).integers(0, 1 << 60, 1000)})
for n in range(50):
    made.offer(asked, {"like": np.zeros(1000, np.float32)}, "abc")
print(made.close(), *((event.kind, event.requests, event.reason) for event in events))
"""


def test_a_full_disk_ends_recording_and_leaves_no_part_of_a_file(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DISK_FULL, tmp_path], cwd=ROOT, capture_output=True, text=True, check=True
    )
    reason = f"File too large in '{tmp_path}'"
    assert done.stdout == f"True {('dropped', 50, '')} {('stopped', 0, reason)}\n"
    assert list(tmp_path.iterdir()) == []


def test_offering_a_request_that_is_not_kept_costs_next_to_nothing(tmp_path: Path, events: Events) -> None:
    made = Recorder(tmp_path, 0.0, GIB, events)
    asked, answered = request(64), scores(64)
    started = time.perf_counter()
    for _ in range(10_000):
        made.offer(asked, answered, "abc")
    assert (time.perf_counter() - started) / 10_000 < 20e-6  # about 0.2 us; the bound allows for a busy machine
    made.close()

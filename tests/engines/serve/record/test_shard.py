"""A recorded file is there whole or not at all, whatever ends the process."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest

from engines.serve.record.recorder import Recorder, RecordEvent
from engines.serve.record.rows import REQUEST_ID, UserRows, columns_of
from engines.serve.record.shard import Shard, folder_bytes, remove_unfinished, write_whole
from quant.requests import spec
from quant.requests.readers import read_requests

ROOT = Path(__file__).parents[4]


def no_event(event: RecordEvent) -> None:
    """Ignore it."""


def test_the_id_column_is_that_of_request_files() -> None:
    assert REQUEST_ID == spec.REQUEST_ID


@pytest.mark.parametrize("dtype", ["int64", "int32", "float32", "float16", "float64", "bool", "uint8"])
@pytest.mark.parametrize("row_shape", [(), (3,), (2, 3), (1,)])
def test_every_dtype_and_shape_survives(dtype: str, row_shape: tuple[int, ...], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    user = rng.integers(0, 2, (1, *row_shape)).astype(dtype)
    items = rng.integers(0, 2, (4, *row_shape)).astype(dtype)
    part = UserRows({"u": user}, {"i": items}, {"like": np.zeros(4, np.float32)})
    shard = Shard(columns_of(part), "v")
    shard.add(part)
    write_whole(tmp_path / shard.name, shard.finish())
    wanted = spec.RequestSpec((spec.InputSpec("u", dtype, row_shape),), (spec.InputSpec("i", dtype, row_shape),))
    (read,) = read_requests([tmp_path], wanted)
    np.testing.assert_array_equal(read.user["u"], user)
    np.testing.assert_array_equal(read.items["i"], items)
    assert read.items["i"].dtype == items.dtype


def test_an_unfinished_file_is_removed_unless_a_process_writes_it(tmp_path: Path) -> None:
    for name in (".requests-left.parquet", ".requests-held.parquet", ".other", "requests-whole.parquet"):
        (tmp_path / name).write_bytes(b"PAR1")
    with (tmp_path / ".requests-held.parquet").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert remove_unfinished(tmp_path) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        ".other",
        ".requests-held.parquet",
        "requests-whole.parquet",
    ]


def test_a_file_that_another_process_takes_for_unfinished_is_written_again(tmp_path: Path) -> None:
    path, unfinished = tmp_path / "requests-new.parquet", tmp_path / ".requests-new.parquet"
    unfinished.touch()
    writer = threading.Thread(target=write_whole, args=(path, memoryview(b"PAR1")))
    with unfinished.open("rb") as other:  # locked before the writer can lock it, then removed
        fcntl.flock(other, fcntl.LOCK_EX)
        writer.start()
        time.sleep(0.05)
        assert not path.exists()
        unfinished.unlink()
    writer.join(20)
    assert (path.read_bytes(), unfinished.exists()) == (b"PAR1", False)


def test_only_files_of_the_folder_itself_count(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "b").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("/etc/passwd")
    assert folder_bytes(tmp_path) == 5


KILLED = """
import sys
from pathlib import Path
import numpy as np
from engines.serve.record.recorder import Recorder
from engines.serve.score_request import ScoreRequest
def tell(event):
    if event.kind == "recorded":
        print("recorded", flush=True)
made = Recorder(Path(sys.argv[1]), 1.0, 1 << 30, tell, file_seconds=0.0)
asked = ScoreRequest({"u": np.arange(1)}, {"i": np.random.default_rng(0).integers(0, 1 << 60, 1000)})
while True:
    made.offer(asked, {"like": np.zeros(1000, np.float32)}, "abc")
"""


def test_a_killed_process_leaves_whole_files_only(tmp_path: Path) -> None:
    wanted = spec.RequestSpec((spec.InputSpec("u", "int64"),), (spec.InputSpec("i", "int64"),))
    for delay in (0.0, 0.013, 0.029):
        process = subprocess.Popen([sys.executable, "-c", KILLED, tmp_path], cwd=ROOT, stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"recorded\n"
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    whole = [p for p in tmp_path.iterdir() if not p.name.startswith(".")]
    assert len(whole) >= 3
    read = list(read_requests([tmp_path], wanted))
    assert sum(r.candidates for r in read) == sum(parquet.read_metadata(p).num_rows for p in whole)
    (tmp_path / ".requests-cut.parquet").write_bytes(whole[0].read_bytes()[:-9])  # what a kill mid-write leaves
    assert len(list(read_requests([tmp_path], wanted))) == len(read)
    Recorder(tmp_path, 1.0, 1 << 30, no_event).close()
    assert sorted(p for p in tmp_path.iterdir()) == sorted(whole)

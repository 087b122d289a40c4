"""Folders of killed processes are removed, those of living ones never."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from graphs.base.scratch import remove_abandoned, scratch_folder

_HOLD = """
import sys
from pathlib import Path
from graphs.base.scratch import scratch_folder
with scratch_folder(".work-", Path(sys.argv[1])) as folder:
    (folder / "part").write_text("x")
    print(folder, flush=True)
    sys.stdin.read()
"""


def test_only_what_no_living_process_owns_is_removed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _HOLD, str(tmp_path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]
    ) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        os.utime(folder, (0, 0))  # age proves nothing
        assert remove_abandoned(tmp_path, ".work-") == 0
        assert (folder / "part").is_file()
        process.kill()
    assert (folder / "part").is_file(), "a killed process cannot clean up"
    assert remove_abandoned(tmp_path, ".work-") == 1
    assert not folder.exists()


def test_the_next_run_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    left = tmp_path / ".work-abcd1234"
    left.mkdir()
    with scratch_folder(".work-", tmp_path) as folder:
        assert [*tmp_path.iterdir()] == [folder]
        with scratch_folder(".work-", tmp_path) as second:
            assert folder.is_dir() != second.samefile(folder)
    assert [*tmp_path.iterdir()] == []


def test_other_names_links_and_missing_places_stay(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / ".work-results").mkdir()
    (tmp_path / ".work-RESULTS1").mkdir()
    (tmp_path / ".work-linked00").symlink_to(tmp_path / "kept")
    before = sorted(tmp_path.iterdir())
    assert remove_abandoned(tmp_path, ".work-") == 0
    assert sorted(tmp_path.iterdir()) == before
    assert remove_abandoned(tmp_path / "none", ".work-") == 0

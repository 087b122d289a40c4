"""Free memory is what the machine, control groups and limits all leave."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from engines.measure.free_memory import free_bytes

MIB = 1 << 20


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


V2 = {"proc/self/cgroup": "0::/jobs/one\n", "sys/fs/cgroup/jobs/memory.max": f"{100 * MIB}\n",
      "sys/fs/cgroup/jobs/memory.current": f"{70 * MIB}\n",
      "sys/fs/cgroup/jobs/memory.stat": f"anon {5 * MIB}\ninactive_file {20 * MIB}\n",
      "sys/fs/cgroup/jobs/one/memory.max": "max\n",
      "sys/fs/cgroup/jobs/one/memory.current": f"{60 * MIB}\n"}  # fmt: skip
V1 = {"proc/self/cgroup": "5:cpu,cpuacct:/x\n4:memory:/docker/abc\n0::/\n",
      "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{80 * MIB}\n",
      "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{30 * MIB}\n"}  # fmt: skip


@pytest.mark.parametrize("files", [V2, V1], ids=["v2, the group around", "v1, in a container"])
def test_a_control_group_bounds_what_is_free(tmp_path: Path, files: dict[str, str]) -> None:
    write(tmp_path, files)
    assert free_bytes(tmp_path) == 50 * MIB


def test_a_group_beyond_its_limit_leaves_nothing(tmp_path: Path) -> None:
    write(tmp_path, {**V2, "sys/fs/cgroup/jobs/memory.current": f"{900 * MIB}\n"})
    assert free_bytes(tmp_path) == 0


@pytest.mark.parametrize("text", ["", "0::/\n", "0::/gone\n"])
def test_without_groups_it_is_what_the_machine_has(tmp_path: Path, text: str) -> None:
    write(tmp_path, {"proc/self/cgroup": text})
    # Other processes take and give memory meanwhile.
    assert free_bytes(tmp_path) == pytest.approx(psutil.virtual_memory().available, rel=0.5)


def test_a_limit_of_the_process_bounds_it_too(tmp_path: Path) -> None:
    told = subprocess.run(
        [sys.executable, "-c",
         "import resource, psutil\nfrom pathlib import Path\nfrom engines.measure.free_memory import free_bytes\n"
         f"limit = psutil.Process().memory_info().vms + {64 * MIB}\n"
         "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\nprint(free_bytes(Path('/none')))"],
        cwd=Path(__file__).parents[3], capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert 0 < int(told.stdout) <= 64 * MIB

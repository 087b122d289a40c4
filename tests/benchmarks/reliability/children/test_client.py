from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.reliability.children.client import Children, is_alive, started
from benchmarks.reliability.children.order import Order, Trap
from benchmarks.reliability.children.traps import counted
from benchmarks.serving.servers.process import wait_until


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    with started() as children:
        yield children


def order(folder: Path, *argv: str, **changes: object) -> Order:
    return Order(argv, folder, folder.parent / "output", **changes)  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "here").mkdir()
    return tmp_path / "here"


def test_a_command_ends_as_from_a_shell(children: Children, folder: Path) -> None:
    helped = children.run(order(folder, "ugsep", "verify", "--help"))
    assert (helped.status, helped.stderr) == (0, "")
    assert helped.stdout.startswith("Usage: ugsep verify")
    missing = children.run(order(folder, "ugsep", "verify", "nothing"))
    assert missing.status == 2
    assert missing.last_line.startswith("error: ")


def test_a_trap_kills_before_the_operation_it_counts_to(children: Children, folder: Path) -> None:
    (folder / "report").mkdir()
    counter = folder.parent / "count"
    command = ("benchmarks.reliability.kill.steps", "publish", str(folder / "report"), str(folder / "new"))
    assert children.run(order(folder, *command, trap=Trap(folder, counter))).status == 0
    total = counted(counter)
    assert total > 5
    for operation in (1, total // 2, total):
        trap = Trap(folder, counter, operation)
        assert children.run(order(folder, *command, trap=trap)).status == -signal.SIGKILL
        assert counted(counter) == operation


def test_limits_and_the_environment_are_those_of_the_order(children: Children, folder: Path) -> None:
    tight = children.run(order(folder, "ugsep", "inspect", "x", limits={"NOFILE": 3}))
    assert tight.status != 0
    wide, narrow = (
        children.run(order(folder, "ugsep", "--help", environ={"COLUMNS": columns})) for columns in ("100", "30")
    )
    assert len(narrow.stdout.splitlines()) > len(wide.stdout.splitlines())


def test_a_command_that_hangs_is_killed(children: Children, folder: Path) -> None:
    slow = ("tests.benchmarks.reliability.children.sleeper", "60")
    ended = children.run(order(folder, *slow), seconds=0.5)
    assert ended.late
    assert ended.status == -signal.SIGKILL


def test_what_still_runs_ends_with_the_server(folder: Path) -> None:
    with started() as children:
        pid = children.start(order(folder, "tests.benchmarks.reliability.children.sleeper", "60"))
    wait_until(lambda: not is_alive(pid), 30, "the end of a killed process")


def test_an_order_is_read_as_it_was_written(folder: Path) -> None:
    made = order(folder, "quant", "a b\n", environ={"HOME": None}, limits={"AS": 5}, uid=3, umask=0o77,
                 remove_cwd=True, refuse_network=True, trap=Trap(folder, folder / "count", 7, 2))  # fmt: skip
    assert Order.from_line(made.to_line()) == made
    assert "\n" not in made.to_line()

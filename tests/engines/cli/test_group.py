import io
import shlex

import click
import pytest
from click.testing import CliRunner

from engines.cli.command_entry import CommandEntry
from engines.cli.group import Command, CommandGroup, LazyGroup, as_typed
from graphs.base.errors import GateFailed, UgsepError
from graphs.base.progress import Progress, show_progress


@click.group(cls=CommandGroup)
def cli() -> None:
    pass


@cli.command()
@click.argument("what")
@click.option("--rows", type=int, default=1)
def fail(what: str, rows: int) -> None:
    if what == "input":
        raise UgsepError("feature 'age' is missing\nin 'a.parquet'; add the column")
    if what == "escape":
        raise UgsepError("'a\x1b[31m\x00\u202eb.parquet': no such file")
    if what == "gate":
        raise GateFailed("sqnr 20 dB is below 35 dB")
    if what == "disk":
        raise OSError(28, "No space left on device", "out/x")
    if what == "memory":
        raise MemoryError("std::bad_alloc")
    if what == "thread":
        raise RuntimeError("can't start new thread")
    if what == "bug":
        raise RuntimeError("a bug")
    click.echo(f"fine {rows}")


@pytest.mark.parametrize(
    ("args", "status", "text"),
    [
        (["fail", "input"], 2, "error: feature 'age' is missing in 'a.parquet'; add the column\n"),
        (["fail", "escape"], 2, "error: 'a\\x1b[31m\\x00\\u202eb.parquet': no such file\n"),
        (["fail", "gate"], 1, "error: sqnr 20 dB is below 35 dB\n"),
        (["fail", "disk"], 2, "error: No space left on device: 'out/x'; check the path"),
        (["fail", "memory"], 2, "error: not enough memory (std::bad_alloc); free some"),
        (["fail", "thread"], 2, "error: not enough memory (can't start new thread); free some"),
        (["fale", "x"], 2, "error: unknown command 'fale', did you mean 'fail'?"),
        (["fail", "x", "--rows", "many"], 2, "error: Invalid value for '--rows'"),
        (["fail"], 2, "error: Missing argument 'WHAT'."),
        (["fail", "x", "--\x1b[31m"], 2, "error: unknown option '--\\x1b[31m' (see"),
    ],
)
def test_errors_are_one_line_with_a_status(args: list[str], status: int, text: str) -> None:
    result = CliRunner().invoke(cli, args)
    assert result.exit_code == status
    assert result.stderr.startswith(text)
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.output


@pytest.mark.parametrize("args", [["--debug", "fail", "input"], ["fail", "input", "--debug"]])
def test_debug_lets_the_error_through(args: list[str]) -> None:
    assert isinstance(CliRunner().invoke(cli, args).exception, UgsepError)


def test_a_bug_is_no_lack_of_memory() -> None:
    assert isinstance(CliRunner().invoke(cli, ["fail", "bug"]).exception, RuntimeError)


def test_success_and_help_end_with_zero() -> None:
    done = CliRunner().invoke(cli, ["fail", "nothing", "--rows", "3"])
    assert (done.exit_code, done.stdout) == (0, "fine 3\n")
    shown = CliRunner().invoke(cli, ["fail", "--help"])
    assert shown.exit_code == 0
    assert "--debug" in shown.stdout
    for short in (["-h"], ["fail", "-h"]):
        assert CliRunner().invoke(cli, short).exit_code == 0


def test_what_was_typed_can_be_typed_again() -> None:
    @cli.command()
    @click.argument("what")
    @click.option("--set", "changes", multiple=True)
    @click.option("--cache/--no-cache", default=True)
    @click.option("--seed", default=0)
    @click.option("--json", "as_json", is_flag=True)
    def typed(what: str, changes: tuple[str, ...], cache: bool, seed: int, as_json: bool) -> None:
        click.echo(as_typed(click.get_current_context()))

    given = ["typed", "--no-cache", "a b", "--set", "x=1", "--set", "y={u: 2}", "--json", "--debug"]
    shown = CliRunner().invoke(cli, given, prog_name="ugsep").stdout.strip()
    assert shown == "ugsep typed 'a b' --set x=1 --set 'y={u: 2}' --no-cache"
    assert CliRunner().invoke(cli, shlex.split(shown)[1:], prog_name="ugsep").stdout.strip() == shown


@click.command(cls=Command, renamed={"--speed": "--rate"})
@click.option("--rate", type=int, default=1)
def alone(rate: int) -> None:
    if rate > 1:
        raise GateFailed(f"rate {rate} is above 1")


@pytest.mark.parametrize(
    ("args", "status", "text"),
    [
        ([], 0, ""),
        (["--rate", "2"], 1, "error: rate 2 is above 1\n"),
        (["--speed", "2"], 2, "error: unknown option '--speed', did you mean '--rate'? (see 'alone --help')\n"),
        (["--rates", "2"], 2, "error: unknown option '--rates', did you mean '--rate'? (see 'alone --help')\n"),
        (["--zzz"], 2, "error: unknown option '--zzz' (see 'alone --help')\n"),
    ],
)
def test_a_command_of_its_own_ends_like_one_of_a_group(args: list[str], status: int, text: str) -> None:
    result = CliRunner().invoke(alone, args)
    assert (result.exit_code, result.stderr) == (status, text)


def test_a_command_of_two_groups_has_debug_once() -> None:
    for group in (CommandGroup("a"), CommandGroup("b")):
        group.add_command(alone)
        assert isinstance(CliRunner().invoke(group, ["alone", "--rate", "2", "--debug"]).exception, GateFailed)
    assert [option for param in alone.params for option in param.opts].count("--debug") == 1


def test_progress_is_plain_lines_without_a_terminal() -> None:
    out = io.StringIO()
    with show_progress(out) as progress:
        for done in range(4):
            progress(Progress("calibrate", done, 3, "shard-0"))
        progress(Progress("scan", 7))
    # the steps in between fall within the five seconds between two lines
    assert out.getvalue() == "calibrate 0/3 shard-0\ncalibrate 3/3 shard-0\nscan 7\n"


def test_a_lazy_group_shows_its_table_and_imports_only_what_is_called() -> None:
    table = {"nothing-here": CommandEntry("engines.cli.nothing", "Do nothing."), "lost": CommandEntry("lost", "No.")}
    group = LazyGroup("lazy", table=table)
    shown = CliRunner().invoke(group, ["--help"])
    assert shown.exit_code == 0
    assert "nothing-here  Do nothing." in shown.stdout
    missing = CliRunner().invoke(group, ["lost"])
    assert (missing.exit_code, missing.stdout) == (2, "")
    assert missing.stderr == "error: this command requires package 'lost'; run: pip install 'ugsep[build]'\n"
    assert isinstance(CliRunner().invoke(group, ["nothing-here"]).exception, ModuleNotFoundError), "a bug of ours"
    unknown = CliRunner().invoke(group, ["lots"])
    assert unknown.stderr.startswith("error: unknown command 'lots', did you mean 'lost'?")

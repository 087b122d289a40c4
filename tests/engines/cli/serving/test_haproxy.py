"""What 'ugsep serve --haproxy' writes and prints."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from engines.cli.main import main


def test_it_prints_how_to_start_each_replica(built_bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "made" / "haproxy.cfg"
    arguments = ["serve", str(built_bundle), "--queue", "128", "--http-port", "9000", "--no-grpc"]
    result = CliRunner().invoke(main, [*arguments, "--haproxy", str(file), "--replicas", "3"], prog_name="ugsep")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[1] == f"ugsep serve {built_bundle} --no-grpc --queue 128 --host 127.0.0.1 --http-port 9010"
    assert [line.rsplit(" ", 1)[1] for line in lines[1:4]] == ["9010", "9020", "9030"]
    assert lines[4] == f"haproxy -f {file}"
    text = file.read_text()
    assert all(f"#   {line}\n" in text for line in lines[1:4])
    assert [f"server replica{n} 127.0.0.1:90{n}0 check" in text for n in (1, 2, 3)] == [True] * 3
    assert "grpc" not in text.split("global", 1)[1]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--replicas", "2"], "--replicas is for --haproxy FILE"),
        (["--haproxy", "x.cfg", "--http-port", "0"], "needs ports that are known"),
        (["--haproxy", "x.cfg", "--replicas", "0"], "0 replicas; give 1 to 256"),
        (["--haproxy", "x.cfg", "--http-port", "65530"], "choose lower ports"),
        (["--haproxy", "x.cfg", "--host", "a b"], "neither a name nor an address"),
    ],
)
def test_bad_options_are_one_line(built_bundle: Path, tmp_path: Path, options: list[str], line: str) -> None:
    given = [str(tmp_path / option) if option == "x.cfg" else option for option in options]
    result = CliRunner().invoke(main, ["serve", str(built_bundle), *given])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.output
    assert line in result.stderr
    assert not (tmp_path / "x.cfg").exists()

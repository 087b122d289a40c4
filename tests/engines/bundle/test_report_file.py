"""A report is read as untrusted input: whoever reads it refuses a wrong one in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from engines.bundle.bundle import RECIPE
from engines.bundle.manifest import read_manifest, write_manifest
from engines.bundle.report_file import REPORT, read_report
from engines.cli.main import main
from engines.serve.settings import ServeSettings
from engines.serve.swap.loading import load_bundle
from graphs.base.errors import UgsepError

WRONG: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no fields": (lambda r: r.clear(), "missing required field"),
    "no split": (lambda r: r.pop("split"), "missing required field `split`"),
    "no side": (lambda r: r["split"].pop("item"), r"missing required field `item` - at `\$\.split`"),
    "FLOPs as text": (lambda r: r["split"]["user"].update(flops="7"), "Expected `integer`, got `string`"),
    "negative FLOPs": (lambda r: r["split"]["user"].update(flops=-1), "Expected `integer` >= 0"),
    "FLOPs beyond int64": (lambda r: r["split"]["full"].update(flops=10**400), "out of range"),
    "gates as an object": (lambda r: r.update(targets={}), r"Expected `array`, got `object` - at `\$\.targets`"),
    "a gate without a name": (lambda r: r["targets"][0].pop("name"), "missing required field `name`"),
    "a limit of zero": (lambda r: r["latency"].update(limit=0), "Expected `number` > 0.0"),
    "latency is null": (lambda r: r.update(latency=None), "Expected `object`, got `null`"),
    "AUC by number": (lambda r: r["auc"].update(fp32=[1.0]), "Expected `object`, got `array`"),
    "a name with escape sequences": (lambda r: r.update(model="\x1b[2J"), "holds characters that cannot be printed"),
    "nested deeply": (lambda r: r.update(model=json.loads("[" * 60 + "]" * 60), notes=[[[[[[]]]]]]), "got `array`"),
}


def rewrite(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the report, with matching hashes."""
    report = json.loads((bundle / REPORT).read_text())
    change(report)
    (bundle / REPORT).write_text(json.dumps(report))
    write_manifest(bundle, read_manifest(bundle))


@pytest.mark.parametrize("case", sorted(WRONG))
def test_a_wrong_report_is_refused_in_one_line(built_bundle: Path, tmp_path: Path, case: str) -> None:
    change, says = WRONG[case]
    report = json.loads((built_bundle / REPORT).read_text())
    change(report)
    (tmp_path / REPORT).write_text(json.dumps(report))
    with pytest.raises(UgsepError, match=says) as caught:
        read_report(tmp_path)
    assert str(caught.value).isprintable()
    assert str(caught.value).endswith("build the bundle again")


def test_everything_that_reads_a_report_refuses_an_empty_one(bundle: Path, tmp_path: Path) -> None:
    rewrite(bundle, lambda report: report.clear())
    with pytest.raises(UgsepError, match=r"report\.json: Object missing required field"):
        load_bundle(ServeSettings(bundle))
    assert (bundle / RECIPE).is_file()
    for command in (["serve"], ["validate", "--synthetic"], ["bench", "--candidates", "1", "--out", str(tmp_path)]):
        result = CliRunner().invoke(main, [*command, str(bundle)])
        assert result.exit_code == 2, result.output
        assert [line[:7] for line in result.stderr.splitlines() if "report.json" in line] == ["error: "], (
            result.stderr
        )
        assert "Traceback" not in result.output


def test_a_sound_report_is_returned_whole(built_bundle: Path) -> None:
    assert read_report(built_bundle) == json.loads((built_bundle / REPORT).read_text())

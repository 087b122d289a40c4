"""``ugsep rollback`` and ``ugsep reload`` against a real socket, watcher and bundles."""

from __future__ import annotations

import dataclasses
import io
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from engines.bundle.manifest import read_manifest
from engines.cli.main import main
from engines.serve.core.model_slot import ModelSlot
from engines.serve.observe.log import make_log
from engines.serve.observe.metrics import Metrics
from engines.serve.settings import ServeSettings
from engines.serve.swap.admin import AdminSocket, admin_actions, open_admin
from engines.serve.swap.loading import load_bundle
from engines.serve.swap.swap_log import SwapLog
from engines.serve.swap.watcher import Watcher
from tests.manifests import write_raw


@dataclass
class Served:
    """A bundle that is served, so far as an administrator sees it."""

    bundle: Path
    slot: ModelSlot
    admin: AdminSocket

    @property
    def version(self) -> str:
        return self.slot.current().version

    def change(self, key: str) -> None:
        manifest = dataclasses.replace(read_manifest(self.bundle), content_key=key)
        write_raw(self.bundle, dataclasses.asdict(manifest))


@pytest.fixture
def served(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    with tempfile.TemporaryDirectory(prefix="ug") as runtime:
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
        settings = ServeSettings(bundle, watch_seconds=0, runtime_folder=Path(runtime, "ugsep"))
        log, slot = make_log(io.StringIO())[0], ModelSlot()
        slot.switch(load_bundle(settings))
        watcher = Watcher(settings, slot, SwapLog(), log, Metrics())
        admin = open_admin(settings, 8000, admin_actions(watcher, dict), log)
        assert admin is not None
        yield Served(bundle, slot, admin)
        admin.close()
        slot.close(10)


def run(*args: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in args])


def one_line_error(result: Result) -> str:
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    return line


def test_reload_and_rollback_print_the_versions(served: Served) -> None:
    first = served.version
    assert run("reload").stdout == "unchanged: the bundle at the path serves already\n"
    served.change("second")
    result = run("reload")
    assert (result.exit_code, first != served.version) == (0, True)
    assert result.stdout.startswith(f"replaced {first} by {served.version} in ")
    second = served.version
    result = run("rollback", "--socket", served.admin.path)
    assert result.stdout.startswith(f"rolled back from {second} to {first}; ")
    assert (result.exit_code, served.version) == (0, first)


def test_a_rollback_needs_a_previous_bundle(served: Served) -> None:
    assert one_line_error(run("rollback")).startswith("error: no previous bundle to roll back to; ")


def test_a_bundle_that_is_refused_is_one_line_and_status_2(served: Served) -> None:
    first = served.version
    (served.bundle / "recipe.yaml").write_text("other: text")
    served.change("second")
    found = one_line_error(run("reload"))
    assert found.startswith(f"error: refused, {first} serves on: ")
    assert "recipe.yaml" in found
    assert served.version == first


def test_without_a_server_the_line_names_the_socket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    for command in ("rollback", "reload"):
        found = one_line_error(run(command, "--port", 8123))
        assert f"{os.path.join(tmp_path, 'ugsep', '8123.sock')}: no server of ours answers there" in found

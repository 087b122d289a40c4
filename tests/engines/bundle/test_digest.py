"""The digest of a manifest: no byte can change unnoticed, and a caller can pin one bundle."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
from click.testing import CliRunner

from engines import Ranker
from engines.bundle.digest import UNSEALED, digest_of, seal
from engines.bundle.files import MANIFEST
from engines.bundle.manifest import read_manifest, write_manifest
from engines.cli.main import main
from engines.serve.settings import ServeSettings
from engines.serve.swap.loading import load_bundle
from engines.serve.swap.snapshot import manifest_version
from graphs.base.errors import UgsepError
from tests.manifests import edit_raw, write_raw


def refusal(bundle: Path, digest: str | None = None) -> str:
    """The one line that a manifest is refused with."""
    with pytest.raises(UgsepError) as caught:
        read_manifest(bundle, digest)
    line = str(caught.value)
    assert line.isprintable()
    return line


@pytest.mark.parametrize("step", [11, pytest.param(1, marks=pytest.mark.slow)])
def test_no_byte_of_a_manifest_changes_unnoticed(built_bundle: Path, tmp_path: Path, step: int) -> None:
    whole = (built_bundle / MANIFEST).read_bytes()
    rng = Random(0)
    for place in range(0, len(whole), step):
        changed = bytearray(whole)
        changed[place] ^= rng.randrange(1, 256)
        (tmp_path / MANIFEST).write_bytes(bytes(changed))
        found = refusal(tmp_path)
        # Constant texts: nothing of what was changed is repeated. Around the digest itself the text may be no JSON.
        assert any(why in found for why in ("changed after it was written", "no digest of its own", "not valid JSON"))
    for other in (whole + b" ", whole[:-1], whole[1:], whole.replace(b"\n", b"\r\n")):
        (tmp_path / MANIFEST).write_bytes(other)
        refusal(tmp_path)


def test_the_commands_refuse_a_changed_byte_in_one_line(bundle: Path) -> None:
    whole = (bundle / MANIFEST).read_bytes()
    rng = Random(1)
    for place in rng.sample(range(len(whole)), 25):
        changed = bytearray(whole)
        changed[place] ^= 1 << rng.randrange(8)
        (bundle / MANIFEST).write_bytes(bytes(changed))
        for command in (["verify"], ["inspect"], ["validate", "--synthetic"]):
            result = CliRunner().invoke(main, [*command, str(bundle)])
            assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1), result.output


def test_a_bundle_is_pinned_by_the_digest_that_verify_prints(built_bundle: Path, bundle: Path) -> None:
    printed = CliRunner().invoke(main, ["verify", "--print-digest", str(built_bundle)])
    digest = printed.stdout.strip()
    assert (printed.exit_code, printed.stdout, digest) == (0, f"{digest}\n", read_manifest(built_bundle).digest)
    assert len(digest) == 64
    for given in (digest, digest.upper()):
        assert CliRunner().invoke(main, ["verify", "--digest", given, str(built_bundle)]).exit_code == 0
        Ranker.from_bundle(built_bundle, digest=given).close()
    edit_raw(bundle, lambda raw: raw.update(model="another"))
    assert "digest" in refusal(bundle, digest)
    for refuse in (
        lambda: Ranker.from_bundle(bundle, digest=digest),
        lambda: load_bundle(ServeSettings(bundle, digest=digest)),
    ):
        with pytest.raises(UgsepError, match=f"but {digest[:16]} is pinned"):
            refuse()
    for command in (["verify"], ["serve"]):
        result = CliRunner().invoke(main, [*command, "--digest", digest, str(bundle)])
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.output
        assert "is pinned" in result.stderr
    for wrong in ("", digest[:12], f"{digest}0", "g" * 64, "\x1b[2J"):
        assert "is not 64 hexadecimal digits" in refusal(built_bundle, wrong)


def test_the_version_that_a_server_names_is_the_start_of_the_digest(built_bundle: Path) -> None:
    manifest = read_manifest(built_bundle)
    assert manifest.short_digest == manifest.digest[:12] == manifest_version(built_bundle)
    with load_bundle(ServeSettings(built_bundle)).ranker as ranker:
        assert ranker.user_engine_digest
    assert load_bundle(ServeSettings(built_bundle)).version == manifest.short_digest


def test_a_damaged_manifest_has_a_version_of_its_own(bundle: Path) -> None:
    before = manifest_version(bundle)
    (bundle / MANIFEST).write_bytes((bundle / MANIFEST).read_bytes()[:-40])
    assert manifest_version(bundle) != before
    assert len(manifest_version(bundle)) == 12


def test_what_is_written_is_returned_with_the_digest_of_its_bytes(bundle: Path) -> None:
    written = write_manifest(bundle, read_manifest(bundle))
    assert written == read_manifest(bundle)
    content = (bundle / MANIFEST).read_bytes()
    zeroed = content.replace(written.digest.encode(), UNSEALED.encode())
    assert content.count(written.digest.encode()) == 1
    assert digest_of(content) == digest_of(zeroed) == written.digest


def test_one_field_and_only_at_the_top_holds_the_digest(bundle: Path) -> None:
    edit_raw(bundle, lambda raw: raw["tools"].update(digest="0" * 64))
    assert "was changed after it was written" in refusal(bundle)
    raw = json.loads((bundle / MANIFEST).read_text())
    write_raw(bundle, {**raw, "tools": {}, "reasons": {"item": '"digest": "' + "0" * 64 + '"'}})
    read_manifest(bundle)  # inside a string the quotes are escaped
    del raw["digest"]
    (bundle / MANIFEST).write_text(seal(json.dumps(raw)))
    assert "has no digest of its own" in refusal(bundle)
    (bundle / MANIFEST).write_text(json.dumps({**raw, "tools": {}, "digest": "none"}))
    assert "has no digest of its own" in refusal(bundle)

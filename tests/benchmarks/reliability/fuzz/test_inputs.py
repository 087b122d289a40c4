from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.reliability.fuzz.guided.parsers import sound
from benchmarks.reliability.fuzz.inputs import replace, reseal
from engines.bundle.files import verify_files
from engines.bundle.manifest import read_manifest, write_manifest
from graphs.base.errors import UgsepError


def test_a_changed_file_that_is_hashed_again_passes_every_check_of_the_manifest(tmp_path: Path) -> None:
    names = ("engines/user/user.onnx", "engines/item/item.onnx")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"abc")
    old = write_manifest(tmp_path, sound.sound_manifest())
    replace(tmp_path / names[0], b"other bytes")
    with pytest.raises(UgsepError, match=r"user\.onnx"):
        verify_files(tmp_path, read_manifest(tmp_path).files, "")
    reseal(tmp_path, names[0])
    found = read_manifest(tmp_path)
    verify_files(tmp_path, found.files, "")
    assert found.digest != old.digest

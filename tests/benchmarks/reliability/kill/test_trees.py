from __future__ import annotations

from pathlib import Path

from benchmarks.reliability.kill.trees import difference, tree


def test_differences_are_named(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "f").write_text("1")
    (tmp_path / "link").symlink_to("a")
    before = tree(tmp_path)
    assert set(before) == {"a", "a/f", "link"}
    assert difference(tree(tmp_path), before) == ""
    (tmp_path / "a" / "f").write_text("2")
    assert difference(tree(tmp_path), before) == "another content: a/f"
    assert difference(tree(tmp_path), before, ["f"]) == ""
    (tmp_path / "a" / ".partial-x").touch()
    assert difference(tree(tmp_path), before, ["f"]) == "left over: a/.partial-x"
    assert difference(before, tree(tmp_path)) == "missing: a/.partial-x"

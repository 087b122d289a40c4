"""The content of a folder, to compare what two runs left."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path

_BY_TIME = (".one_user.onnx", ".one_user.onnx.data")
_FOLDER, _SPECIAL = "folder", "neither file nor folder"


def tree(root: Path) -> dict[str, str]:
    """Return every path below a folder, with the hash of its content."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_symlink():
            found[name] = f"link to {path.readlink()}"
        elif path.is_dir():
            found[name] = _FOLDER
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else _SPECIAL
    return found


def difference(found: Mapping[str, str], expected: Mapping[str, str], volatile: Collection[str] = ()) -> str:
    """Return the first difference in words, or "".

    Args:
        found: a tree.
        expected: another.
        volatile: names of files whose content holds times, and of engine variants that a build keeps where they are
            faster: those may also be in one of the two only.
    """
    variants = {path for path in (*found, *expected) if path.endswith(_BY_TIME)} if volatile else set()
    found, expected = (
        {path: content for path, content in one.items() if path not in variants} for one in (found, expected)
    )
    if left := sorted(found.keys() - expected.keys()):
        return f"left over: {', '.join(left[:3])}"
    if missing := sorted(expected.keys() - found.keys()):
        return f"missing: {', '.join(missing[:3])}"
    for name, content in found.items():
        if content != expected[name] and name.rpartition("/")[2] not in volatile:
            return f"another content: {name}"
    return ""

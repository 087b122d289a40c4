"""The layout that 'make lint' does not check: small files and folders, public faces, no circles, mirrored tests."""

from __future__ import annotations

import ast
from pathlib import Path

import networkx as nx

ROOT = Path(__file__).parents[1]
PACKAGES = ("graphs", "export", "quant", "engines")
SHIPPED = [f for package in PACKAGES for f in sorted((ROOT / package).rglob("*.py"))]
OURS = [*SHIPPED, *sorted((ROOT / "benchmarks").rglob("*.py")), *sorted((ROOT / "examples").rglob("*.py"))]
MOST_LINES = 400
MOST_FILES = 15


def module_name(path: Path, root: Path = ROOT) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def imported_modules(path: Path, known: set[str]) -> set[str]:
    """Return the modules of ``known`` that a file imports, inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inner & known
            if inner - known:
                found.add(node.module)
    return found & known


def circles(files: list[Path], root: Path) -> list[list[str]]:
    known = {module_name(f, root): f for f in files}
    graph = nx.DiGraph((name, other) for name, f in known.items() for other in imported_modules(f, set(known)))
    return [sorted(part) for part in nx.strongly_connected_components(graph) if len(part) > 1]


def test_no_import_circles() -> None:
    assert circles(SHIPPED, ROOT) == []


def test_an_import_circle_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("def f():\n    from b import g\n    return g\n")
    (tmp_path / "b.py").write_text("import a\n")
    assert circles(sorted(tmp_path.glob("*.py")), tmp_path) == [["a", "b"]]


def test_files_stay_small() -> None:
    lines = {str(f.relative_to(ROOT)): len(f.read_text().splitlines()) for f in OURS}
    assert {f: n for f, n in lines.items() if n > MOST_LINES} == {}


def face_problems(folder: Path) -> list[str]:
    """Return what is wrong with a folder's size and ``__init__.py``."""
    files = [f for f in folder.iterdir() if f.is_file() and f.suffix in (".py", ".yaml", ".html")]
    face = ast.parse((folder / "__init__.py").read_text())
    docstring = ast.get_docstring(face) or ""
    targets = [t for node in face.body if isinstance(node, ast.Assign) for t in node.targets]
    targets += [node.target for node in face.body if isinstance(node, ast.AnnAssign)]
    wrong = {
        f"{len(files)} files": len(files) > MOST_FILES,
        "no docstring of one line": len(docstring.splitlines()) != 1,
        "no __all__": "__all__" not in {t.id for t in targets if isinstance(t, ast.Name)},
    }
    return [what for what, found in wrong.items() if found]


def test_folders_stay_small_and_have_a_face() -> None:
    folders = sorted({f.parent for f in OURS})
    found = {str(folder.relative_to(ROOT)): face_problems(folder) for folder in folders}
    assert {f: wrong for f, wrong in found.items() if wrong} == {}


def test_no_private_module_of_another_folder_is_imported() -> None:
    known = {module_name(f) for f in OURS}
    taken = set()
    for file in OURS:
        for name in imported_modules(file, known):
            parent, _, base = name.rpartition(".")
            if base.startswith("_") and parent != module_name(file.parent / "__init__.py"):
                taken.add((module_name(file), name))
    assert taken == set()


def test_tests_mirror_the_tree() -> None:
    folders = {f.parent.relative_to(ROOT / "tests") for f in (ROOT / "tests").rglob("test_*.py")} - {Path(".")}
    assert {str(f) for f in folders if not (ROOT / f).is_dir()} == set()

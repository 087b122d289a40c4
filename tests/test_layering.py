"""The layout that 'make lint' does not check: small files and folders, public faces, no circles, mirrored tests."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import networkx as nx

ROOT = Path(__file__).parents[1]
SHIPPED = ("graphs", "export", "quant", "engines")
PACKAGES = (*SHIPPED, "benchmarks", "examples")
OURS = [f for package in PACKAGES for f in sorted((ROOT / package).rglob("*.py"))]
FOLDERS = sorted({f.parent for f in OURS})
MOST_LINES = 400
MOST_FILES = 15
#: Where a name of a face may be documented if no other folder imports it.
PAGES = [ROOT / "README.md", ROOT / "Makefile", ROOT / "pyproject.toml", *sorted((ROOT / "docs").glob("*.md"))]
#: Test files that are not named after a module of the folder they mirror, and why.
SCENARIOS = {
    "tests/test_architecture.py": "the pages against the code",
    "tests/test_layering.py": "the whole tree",
    "tests/test_readme.py": "the commands of README.md",
    "tests/test_wheel.py": "the wheel in a clean environment",
    "tests/graphs/split/test_random_networks.py": "random networks, split against whole",
    "tests/engines/build/test_streaming_resume.py": "streamed builds killed at any moment",
    "tests/benchmarks/model_zoo/test_packages_of_models.py": "a few models of every package, measured",
    "tests/benchmarks/reliability/test_campaigns.py": "the short form of every campaign",
    "tests/benchmarks/serving/campaigns/test_campaigns.py": "the short form of every campaign",
    "tests/export/test_split_graphs.py": "what the splitter writes, exported",
    "tests/quant/test_remedies.py": "the refusals of quantization and of recipes",
    "tests/quant/requests/test_arrow_files.py": "requests in Arrow files that others wrote",
    "tests/quant/test_weights_pair.py": "both graphs of a model quantized together",
    "tests/quant/test_weights_ranges.py": "the ranges of activations in quantized graphs",
    "tests/engines/bundle/test_bad_bundles.py": "bundles damaged on disk, from the files to the command",
    "tests/engines/bundle/test_hostile_manifests.py": "manifests from an untrusted author, through every reader",
    "tests/engines/cli/quant/test_mutated_graphs.py": "graphs with mutated stamps, through every command",
    "tests/engines/cli/test_bad_input.py": "bad files and options of every command",
    "tests/engines/cli/test_wrapped_models.py": "models that PyTorch wrapped, through split and build",
    "tests/engines/render/test_hostile_names.py": "names with markup and escape sequences in every page and table",
    "tests/engines/recipes/test_model_recipes.py": "every shipped recipe as a model",
    "tests/engines/recipes/test_recipes.py": "every shipped recipe as a build",
    "tests/engines/serve/core/test_shared_calls.py": "the scheduler where users share calls",
    "tests/engines/serve/test_fork.py": "processes forked while threads score",
    "tests/engines/serve/page/test_browser.py": "the page in Chromium",
    "tests/engines/serve/page/test_page_of_a_server.py": "the page of a whole server in Chromium",
    "tests/engines/serve/oip/test_fuzz.py": "mutated requests over both protocols",
    "tests/engines/serve/test_loading_time.py": "the time to load a large bundle",
    "tests/engines/serve/test_ranker_contract.py": "what the ranker asks of any runner",
    "tests/engines/serve/test_served_sequences.py": "a sequence model from the build to HTTP",
    "tests/engines/serve/test_runtime_imports.py": "the packages a fresh interpreter loads to serve",
    "tests/engines/serve/test_zero_divisors.py": "divisors of 0 from the model to the server",
    "tests/engines/serve/swap/test_swaps_under_load.py": "swaps while requests are scored",
    "tests/export/test_any_length.py": "histories of any length, from the model to ONNX Runtime",
    "tests/export/lowering/test_routed_models.py": "every model with experts, exported and lowered",
    "tests/export/lowering/test_sequence_states.py": "sequence models, exported for one user",
    "tests/export/lowering/test_targets.py": "the passes of __init__.py",
    "tests/graphs/models/test_for_inference.py": "every model as it is exported",
    "tests/graphs/models/test_models.py": "every model against the equations of its paper",
    "tests/graphs/models/test_models_broken.py": "models with one mistake each",
    "tests/graphs/models/test_models_split.py": "every model, split",
    "tests/graphs/split/test_third_party_models.py": "models of other libraries, split",
}


def module_name(path: Path, root: Path = ROOT) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(path: Path, known: set[str]) -> Iterator[tuple[str, str]]:
    """Yield the modules of ``known`` that a file imports, in functions and by strings too, with the name or ''."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "." in node.value:
            yield from ((name, "") for name in [node.value] if name in known)  # for importlib.import_module
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if f"{node.module}.{alias.name}" in known:
                    yield f"{node.module}.{alias.name}", ""
                elif node.module in known:
                    yield node.module, alias.name


MODULES = {module_name(f) for f in OURS}
FOLDER_NAMES = {module_name(folder / "__init__.py") for folder in FOLDERS}


def circles(files: list[Path], root: Path) -> list[list[str]]:
    known = {module_name(f, root): f for f in files}
    graph = nx.DiGraph((name, other) for name, f in known.items() for other, _ in imports(f, set(known)))
    return [sorted(part) for part in nx.strongly_connected_components(graph) if len(part) > 1]


def test_no_import_circles() -> None:
    assert circles(OURS, ROOT) == []


def test_an_import_circle_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("def f():\n    from b import g\n    return g\n")
    (tmp_path / "b.py").write_text("import a\n")
    assert circles(sorted(tmp_path.glob("*.py")), tmp_path) == [["a", "b"]]


def files_in(folder: Path) -> list[Path]:
    return [f for f in folder.rglob("*") if f.is_file() and "__pycache__" not in f.parts]


def test_files_stay_small() -> None:
    ours = [f for package in (*PACKAGES, "tests") for f in files_in(ROOT / package)]
    lines = {str(f.relative_to(ROOT)): len(f.read_text().splitlines()) for f in ours}
    assert {f: n for f, n in lines.items() if n > MOST_LINES} == {}


def test_folders_stay_small() -> None:
    folders = [f.parent.relative_to(ROOT) for package in (*PACKAGES, "tests") for f in files_in(ROOT / package)]
    assert {str(f): folders.count(f) for f in folders if folders.count(f) > MOST_FILES} == {}


def face(folder: Path) -> list[str]:
    """Return ``__all__`` of a folder: names its ``__init__.py`` binds, and modules that other folders may import."""
    (found,) = (
        node.value
        for node in parsed(folder / "__init__.py").body
        if isinstance(node, (ast.Assign, ast.AnnAssign))
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name) and target.id == "__all__"
    )
    assert found is not None
    return list(ast.literal_eval(found))


def bound(folder: Path) -> set[str]:
    """Return what a face may list: names that ``__init__.py`` binds at its top level, modules and folders."""
    names = {f.stem for f in folder.glob("*.py")} | {f.parent.name for f in folder.glob("*/__init__.py")}
    tree = parsed(folder / "__init__.py")
    for node in [inner for top in tree.body for inner in ([top, *top.body] if isinstance(top, ast.If) else [top])]:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        else:
            names |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return names


def test_every_folder_has_a_face_of_names_that_exist() -> None:
    wrong = {}
    for folder in FOLDERS:
        docstring = ast.get_docstring(parsed(folder / "__init__.py")) or ""
        missing = set(face(folder)) - bound(folder)
        if len(docstring.splitlines()) != 1 or missing:
            wrong[module_name(folder / "__init__.py")] = (docstring, missing)
    assert wrong == {}


def crossings(files: list[Path]) -> Iterator[tuple[str, str, str]]:
    """Yield every import from another folder: the importing module, that folder, and the module or name taken.

    An import by another shipped package also takes the folder from the package.
    """
    for file in files:
        for module, name in imports(file, MODULES):
            folder, taken = (module, name) if module in FOLDER_NAMES and name else module.rpartition(".")[::2]
            if folder and folder != module_name(file.parent / "__init__.py"):
                yield module_name(file), folder, taken
            ours, theirs = module_name(file).split("."), folder.split(".")
            if ours[0] in SHIPPED and ours[0] != theirs[0] and len(theirs) > 1:
                yield module_name(file), theirs[0], theirs[1]


def test_other_folders_import_what_a_face_lists() -> None:
    faces = {module_name(folder / "__init__.py"): face(folder) for folder in FOLDERS}
    assert {c for c in crossings(OURS) if c[2] not in faces[c[1]]} == set()


def test_a_face_lists_what_is_used_or_documented() -> None:
    used = {f"{folder}.{taken}" for _, folder, taken in crossings(OURS)}
    pages = "\n".join(page.read_text() for page in PAGES).replace("from engines import Ranker", "engines.Ranker")
    listed = {f"{module_name(folder / '__init__.py')}.{name}" for folder in FOLDERS for name in face(folder)}
    assert {name for name in listed - used if not re.search(rf"\b{name}\b", pages)} == set()


def private_uses(file: Path) -> set[str]:
    """Return the underscore names that a file takes from other folders than its own or the one it mirrors."""
    here = module_name(file.parent / "__init__.py").removeprefix("tests.")
    found, aliases = set(), {}
    for node in ast.walk(parsed(file)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            prefix = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            for alias in node.names:
                module = prefix + alias.name
                owner = module if module in MODULES else module.rpartition(".")[0]
                if owner in MODULES and here != (owner if owner in FOLDER_NAMES else owner.rpartition(".")[0]):
                    aliases[alias.asname or alias.name] = module
                    found |= {module} if is_private(module) else set()
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.Attribute) and aliases.get(ast.unparse(node.value)) in MODULES:
            name = f"{aliases[ast.unparse(node.value)]}.{node.attr}"
            found |= {name} if is_private(name) else set()
    return found


def is_private(name: str) -> bool:
    return any(part.startswith("_") and not part.endswith("__") for part in name.split("."))


def test_no_underscore_name_crosses_folders() -> None:
    files = [*OURS, *(ROOT / "tests").rglob("*.py")]
    assert {str(f.relative_to(ROOT)): found for f in files if (found := private_uses(f))} == {}


def test_tests_mirror_the_tree() -> None:
    tests = sorted(f.relative_to(ROOT / "tests") for f in (ROOT / "tests").rglob("test_*.py"))
    named = {f for f in tests if (ROOT / f.parent / f.name.removeprefix("test_")).is_file() and f.parent != Path()}
    assert {f"tests/{f}" for f in tests if f not in named} == set(SCENARIOS), (
        "name it after a module, or list it with why"
    )
    assert {str(f.parent) for f in tests if not (ROOT / f.parent / "__init__.py").is_file()} == {"."}

"""Loading and scoring a bundle import neither PyTorch nor ONNX tooling, even on error paths."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from engines.backends.host import gpu_name
from engines.backends.table import backend_names
from tests import tiny

HEAVY = (
    "torch", "onnx", "onnx_ir", "onnxscript", "scipy", "matplotlib", "jinja2", "click", "rich", "yaml", "polygraphy",
    "pandas", "pyarrow", "export", "quant",
)  # fmt: skip
ROOT = Path(__file__).parents[3]
SCORE = """
import json, sys
from pathlib import Path
import numpy as np
from engines import Ranker
from engines.bundle.digest import seal
from graphs.base.errors import UgsepError
bundle, inputs, damaged, *backends = sys.argv[1:]
given = np.load(inputs)
user = {k[5:]: given[k] for k in given.files if k.startswith("user.")}
items = {k[5:]: given[k] for k in given.files if k.startswith("item.")}
ranker = Ranker.from_bundle(bundle)
scores = {k: v.tolist() for k, v in ranker.score(user, items).items()}
name = next(iter(items))
refused = []
for call in (
    lambda: ranker.score(user, {}),
    lambda: ranker.score(user, {**items, name: items[name].astype(np.float64)}),
    lambda: ranker.score(user, {**items, name + "x": items[name]}),
    lambda: Ranker.from_bundle(bundle, backend="onnxruntim"),
    lambda: Ranker.from_bundle(bundle, threads=0),
    lambda: Ranker.from_bundle(bundle + "-missing"),
    lambda: Ranker.from_bundle(damaged),
):
    try:
        call()
    except UgsepError as error:
        refused.append(str(error))
manifest = Path(damaged, "manifest.json")
whole = manifest.read_text()
for sound in Path(bundle, "engines").rglob("item.onnx"):
    Path(damaged, sound.relative_to(bundle)).write_bytes(sound.read_bytes())
for backend in backends:
    manifest.write_text(seal(whole.replace('"backend": "onnxruntime"', f'"backend": "{backend}"')))
    try:
        Ranker.from_bundle(damaged).close()
    except UgsepError as error:
        refused.append(str(error))
print(json.dumps({"scores": scores, "refused": refused, "modules": sorted({m.split(".")[0] for m in sys.modules})}))
"""


def test_scoring_and_its_errors_import_nothing_heavy(bundle: Path, built_bundle: Path, tmp_path: Path) -> None:
    user, items = tiny.user_and_items(5)
    inputs = tmp_path / "inputs.npz"
    np.savez(inputs, **{f"user.{k}": v for k, v in user.items()}, **{f"item.{k}": v for k, v in items.items()})
    engine = next((bundle / "engines").rglob("item.onnx"))
    engine.write_bytes(engine.read_bytes()[:-1] + b"x")
    # Both TensorRT backends keep device memory in PyTorch tensors, but not on a machine without a GPU.
    backends = [*(n for n in backend_names() if gpu_name(0) is None or not n.startswith("tensorrt")), "onnxrantime"]
    done = subprocess.run(
        [sys.executable, "-c", SCORE, str(built_bundle), str(inputs), str(bundle), *backends],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert sorted(set(HEAVY) & set(found["modules"])) == []
    assert len(found["refused"]) == 7 + len(backends) - 1, "onnxruntime itself is not refused"
    assert "sha256" in found["refused"][6]
    assert "did you mean 'onnxruntime'" in found["refused"][-1]
    from engines import Ranker

    expected = Ranker.from_bundle(built_bundle).score(user, items)
    assert found["scores"] == {task: logits.tolist() for task, logits in expected.items()}


def test_every_backend_says_what_it_lacks_if_no_build_package_is_installed() -> None:
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({HEAVY[:8]!r}));"
        "from engines.backends.table import backend_names, find_backend;"
        "print([(name, here.can_run or bool(here.reason)) for name in backend_names() for here in "
        "[find_backend(name).probe()]])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == (f"{[(name, True) for name in backend_names()]}\n", "")


@pytest.mark.parametrize("command", ["ugsep", "quant"])
def test_a_command_without_the_build_packages_says_what_to_install(command: str) -> None:
    code = f"import sys; sys.modules['click'] = None; from engines.cli.entry import {command}; {command}()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: this command requires package 'click'; run: pip install 'ugsep[build]'\n"


def test_a_module_of_engines_is_imported_without_the_runtime() -> None:
    code = "import sys, engines.measure.percentiles; print(sorted(m for m in sys.modules if m.startswith('engines')))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "['engines', 'engines.measure', 'engines.measure.percentiles']\n"


def test_engines_has_no_other_name_than_its_face() -> None:
    import engines

    assert engines.Ranker.__module__ == "engines.serve.ranker"
    with pytest.raises(AttributeError, match="module 'engines' has no attribute 'Rankr'"):
        engines.Rankr  # noqa: B018

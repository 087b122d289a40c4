"""What a machine lacks, compared with what the backends themselves find after importing their runtimes."""

from __future__ import annotations

import dataclasses
import importlib.util
import subprocess
import sys

import pytest

from engines.backends.built_engine import BuiltEngine
from engines.backends.contract import Runtime
from engines.backends.host import gpu_capability, gpu_name
from engines.backends.lacking import lacking
from engines.backends.table import backend_names, find_backend

ENGINE = BuiltEngine("onnxruntime", "item", "fp32", (), 0, (), ())


def test_a_backend_of_a_later_version_is_unknown() -> None:
    assert lacking(dataclasses.replace(ENGINE, backend="x")) == "backend 'x' is unknown to this version"


@pytest.mark.parametrize("name", backend_names())
def test_what_is_lacking_keeps_the_backend_from_running(name: str) -> None:
    why = lacking(dataclasses.replace(ENGINE, backend=name))
    here = find_backend(name).probe()
    assert not why or not here.can_run
    runtime = find_backend(name).RUNTIME
    gpu_missing = runtime.on_gpu and gpu_name(0) is None
    package_missing = importlib.util.find_spec(runtime.module) is None
    assert bool(why) == (gpu_missing or package_missing)


def test_no_runtime_is_imported_to_see_what_is_lacking() -> None:
    code = f"""if True:
        import sys
        from engines.backends.built_engine import BuiltEngine
        from engines.backends.lacking import lacking
        for name in {backend_names()}:
            lacking(BuiltEngine(name, "item", "fp32", (), 0, (), ()))
        runtimes = {{"torch", "onnx", *{[find_backend(name).RUNTIME.module for name in backend_names()]}}}
        print(sorted(runtimes & set(sys.modules)))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert lacking(dataclasses.replace(ENGINE, backend="openvino")) == "package 'openvino' is not installed"


@pytest.mark.skipif(gpu_name(0) is None, reason="needs an NVIDIA GPU")
def test_a_gpu_of_another_kind_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    here = gpu_capability(0)
    assert here is not None
    monkeypatch.setattr("engines.backends.tensorrt.backend.RUNTIME", Runtime("json", "json", on_gpu=True))
    for wanted, why in ((here, ""), ("3.5", f"it is for compute capability 3.5, this GPU has {here}"), ("3.5+", "")):
        engine = dataclasses.replace(ENGINE, backend="tensorrt", requires={"compute_capability": wanted})
        assert lacking(engine) == why
    engine = dataclasses.replace(ENGINE, backend="tensorrt", requires={"gpu": "Voodoo 2"})
    assert lacking(engine) == f"it is for Voodoo 2, this GPU is {gpu_name(0)}"

"""What a machine lacks, compared with what the backends themselves find after importing their runtimes."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys

import pytest

from engines.backends.built_engine import BuiltEngine
from engines.backends.host import gpu_capability, gpu_name
from engines.backends.lacking import RUNTIMES, lacking
from engines.backends.table import backend_names, find_backend

ENGINE = BuiltEngine("onnxruntime", "item", "fp32", (), 0, (), ())


def test_every_backend_is_known() -> None:
    assert set(RUNTIMES) == set(backend_names())


@pytest.mark.parametrize("name", backend_names())
def test_what_is_lacking_keeps_the_backend_from_running(name: str) -> None:
    why = lacking(dataclasses.replace(ENGINE, backend=name))
    here = find_backend(name).probe()
    assert not why or not here.can_run
    gpu_missing = RUNTIMES[name][1] and gpu_name(0) is None
    package_missing = importlib.util.find_spec(RUNTIMES[name][0]) is None
    assert bool(why) == (gpu_missing or package_missing)


def test_a_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert lacking(dataclasses.replace(ENGINE, backend="openvino")) == "package 'openvino' is not installed"


@pytest.mark.skipif(gpu_name(0) is None, reason="needs an NVIDIA GPU")
def test_a_gpu_of_another_kind_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    here = gpu_capability(0)
    assert here is not None
    monkeypatch.setitem(RUNTIMES, "tensorrt", ("json", True))
    for wanted, why in ((here, ""), ("3.5", f"it is for compute capability 3.5, this GPU has {here}"), ("3.5+", "")):
        engine = dataclasses.replace(ENGINE, backend="tensorrt", requires={"compute_capability": wanted})
        assert lacking(engine) == why
    engine = dataclasses.replace(ENGINE, backend="tensorrt", requires={"gpu": "Voodoo 2"})
    assert lacking(engine) == f"it is for Voodoo 2, this GPU is {gpu_name(0)}"

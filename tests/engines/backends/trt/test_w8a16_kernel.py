"""The Triton W8A16 kernel against FP64 on shapes that no block size divides, and its PTX parameters."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from graphs.base.errors import UgsepError
from tests.engines.backends.trt.w8a16_check import SHAPES, check

pytest.importorskip("triton", reason="the kernel needs Triton: pip install 'ugsep[triton]'")


def test_it_multiplies_like_fp64_in_the_interpreter() -> None:
    # In a separate process: Triton decides on import whether kernels are interpreted.
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "tests.engines.backends.trt.w8a16_check"]
    root = Path(__file__).parents[4]
    done = subprocess.run(
        command, env=environment, cwd=root, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == f"{len(SHAPES)} shapes agree\n"


@pytest.mark.parametrize("capability", ["8.0", "8.9", "9.0"])
def test_its_ptx_takes_what_tensorrt_passes(capability: str) -> None:
    from engines.backends.trt import w8a16_kernel as module

    kernel = module.compile_ptx(capability)
    head = re.search(r"\.entry w8a16_gemm\((.*?)\)", kernel.ptx, re.DOTALL)
    assert head is not None
    kinds = re.findall(r"\.param \.(\w+)", head[1])
    assert kinds == ["u64", "u64", "u64", "u32", "u32", "u32", "u64"]  # x, q, s, rows, depth, columns, out
    assert f".target sm_{capability.replace('.', '')}" in kernel.ptx
    assert re.search(r"w?g?mma\S*\.f32\.f16\.f16", kernel.ptx), "tensor cores, FP32 sums"
    assert kernel.threads == 128
    assert 0 < kernel.shared_bytes <= 48 << 10
    assert (kernel.name, "w8a16_gemm_param_7" in kernel.ptx) == ("w8a16_gemm", False)


def test_a_kernel_that_needs_hidden_parameters_is_refused() -> None:
    from engines.backends.trt import w8a16_kernel as module

    ptx = (
        ".visible .entry f(\n\t.param .u64 f_param_0,\n\t.param .u64 f_param_1\n)\n"
        "{\n\tld.param.b64 %rd1, [f_param_INDEX];\n}"
    )
    assert module.drop_hidden_parameters(ptx.replace("INDEX", "0"), "f", 1).startswith(
        ".visible .entry f(\n\t.param .u64 f_param_0\n)"
    )
    with pytest.raises(UgsepError, match="needs scratch memory of Triton's launcher"):
        module.drop_hidden_parameters(ptx.replace("INDEX", "1"), "f", 1)
    with pytest.raises(UgsepError, match="takes 2 parameters, not 3"):
        module.drop_hidden_parameters(ptx.replace("INDEX", "0"), "f", 3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("shape", SHAPES)
def test_it_multiplies_like_fp64_on_a_gpu(shape: tuple[int, int, int, int]) -> None:
    check("cuda", *shape)

"""W8A16 GEMM per feature token in Triton: int8 weights stay int8 in memory, FP16 rows, FP32 sums.

For TensorRT on GPU generations whose own kernels cannot read int8 weights (``w8a16_plugin``). Compiled to
PTX on any machine; its arithmetic is tested in Triton's interpreter, and on a GPU if there is one.
Importing this module needs Triton.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget

from graphs.base.errors import UgsepError

#: Rows, columns and depth of one program's tile, and its warps: ranking rows are few, so tiles are flat.
BLOCK_M, BLOCK_N, BLOCK_K, WARPS = 16, 64, 64, 4


@dataclass(frozen=True)
class Kernel:
    """A compiled kernel: entry name, PTX, threads per program, bytes of shared memory."""

    name: str
    ptx: str
    threads: int
    shared_bytes: int


@triton.jit  # type: ignore[untyped-decorator]  # an optional library, not followed by the type checker
def w8a16_gemm(  # type: ignore[no-untyped-def]  # Triton compiles annotations too and knows only its own
    x_ptr,
    q_ptr,
    s_ptr,
    rows,
    depth,
    columns,
    out_ptr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
):
    """Compute out[t] = (x[t] @ q[t]) * s[t] for x [T, M, K], q int8 [T, K, N], s [T, N]; one tile per program.

    Program axes: tiles of rows, tiles of columns, feature tokens. Tensors are contiguous. int8 is exact in
    FP16, so the only roundings are those of the FP32 sums and of the result.
    """
    token = tl.program_id(2).to(tl.int64)
    m = tl.program_id(0) * block_m + tl.arange(0, block_m)
    n = tl.program_id(1) * block_n + tl.arange(0, block_n)
    x_ptr += token * rows * depth
    q_ptr += token * depth * columns
    s_ptr += token * columns
    out_ptr += token * rows * columns
    total = tl.zeros((block_m, block_n), dtype=tl.float32)
    for start in range(0, depth, block_k):
        k = start + tl.arange(0, block_k)
        x_mask = (m[:, None] < rows) & (k[None, :] < depth)
        q_mask = (k[:, None] < depth) & (n[None, :] < columns)
        x = tl.load(x_ptr + m[:, None] * depth + k[None, :], mask=x_mask, other=0.0)
        q = tl.load(q_ptr + k[:, None] * columns + n[None, :], mask=q_mask, other=0)
        total = tl.dot(x, q.to(tl.float16), total)
    s = tl.load(s_ptr + n, mask=n < columns, other=0.0).to(tl.float32)
    out_mask = (m[:, None] < rows) & (n[None, :] < columns)
    tl.store(out_ptr + m[:, None] * columns + n[None, :], (total * s[None, :]).to(tl.float16), mask=out_mask)


def run(x: Any, q: Any, s: Any) -> Any:
    """Return FP16 [T, M, N] for torch tensors x FP16 [T, M, K], q int8 [T, K, N], s FP16 [T, N].

    On a GPU, or on the CPU with Triton's interpreter (``TRITON_INTERPRET=1`` when this module is imported).
    """
    import torch

    tokens, rows, depth = x.shape
    columns = q.shape[2]
    out = torch.empty((tokens, rows, columns), dtype=torch.float16, device=x.device)
    grid = (triton.cdiv(rows, BLOCK_M), triton.cdiv(columns, BLOCK_N), tokens)
    tensors = [t.contiguous() for t in (x, q, s)]
    w8a16_gemm[grid](*tensors, rows, depth, columns, out, BLOCK_M, BLOCK_N, BLOCK_K, num_warps=WARPS)
    return out


def compile_ptx(capability: str) -> Kernel:
    """Compile the kernel for a compute capability such as ``8.9``; needs no GPU.

    Raises:
        UgsepError: Triton added parameters to the kernel that a plain launch cannot fill.
    """
    signature = {"x_ptr": "*fp16", "q_ptr": "*i8", "s_ptr": "*fp16", "rows": "i32", "depth": "i32", "columns": "i32"}
    signature |= {"out_ptr": "*fp16", **dict.fromkeys(("block_m", "block_n", "block_k"), "constexpr")}
    tiles = {"block_m": BLOCK_M, "block_n": BLOCK_N, "block_k": BLOCK_K}
    source = triton.compiler.ASTSource(fn=w8a16_gemm, signature=signature, constexprs=tiles)
    target = GPUTarget("cuda", int(capability.replace(".", "")), 32)
    compiled = triton.compile(source, target=target, options={"num_warps": WARPS, "enable_fp_fusion": True})
    name = str(compiled.metadata.name)
    ptx = drop_hidden_parameters(compiled.asm["ptx"], name, 7)
    return Kernel(name, ptx, WARPS * 32, int(compiled.metadata.shared))


def drop_hidden_parameters(ptx: str, name: str, count: int) -> str:
    """Return PTX whose entry takes exactly ``count`` parameters.

    Triton appends pointers to scratch memory that only its own launcher passes; TensorRT passes inputs, scalars and
    outputs, and a launch with too few arguments reads beyond them. Unread ones can be dropped.

    Raises:
        UgsepError: the kernel reads one of them.
    """
    head = re.search(rf"\.entry {name}\((.*?)\)", ptx, re.DOTALL)
    parameters = [] if head is None else head[1].split(",\n")
    if head is None or len(parameters) < count:
        raise UgsepError(
            f"kernel '{name}' takes {len(parameters)} parameters, not {count}; use another Triton version"
        )
    for index in range(count, len(parameters)):
        if f"[{name}_param_{index}" in ptx:
            raise UgsepError(f"kernel '{name}' needs scratch memory of Triton's launcher; use another Triton version")
    kept = ",\n".join(parameters[:count]) + "\n"
    return ptx[: head.start(1)] + kept + ptx[head.end(1) :]

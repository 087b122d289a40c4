"""The W8A16 kernel as an ahead-of-time TensorRT plugin: its PTX goes into the engine, which then needs no Triton.

Written against the TensorRT 11 bindings (``tensorrt.plugin``, experimental there): registration passes their
validation. Whether the parser takes INT8 constants as plugin inputs, and the launch itself, need the TensorRT
libraries and a GPU and have not been run.
"""

# No `from __future__ import annotations`: TensorRT reads these annotations as types.

from typing import Any

from export.lowering import PLUGIN_NAMESPACE, PLUGIN_OP
from graphs.base.errors import UgsepError

PLUGIN_ID = f"{PLUGIN_NAMESPACE}::{PLUGIN_OP}"


def register_plugin(capability: str) -> None:
    """Make the plugin known to TensorRT for a compute capability; done once per process.

    Raises:
        UgsepError: Triton is missing, or it compiles the kernel in a form that TensorRT cannot launch.
    """
    import tensorrt.plugin as trtp

    try:
        from engines.backends.trt import w8a16_kernel as kernels
    except ImportError as error:
        raise UgsepError(f"the int8 plugin needs Triton ({error}); pip install 'ugsep[triton]'") from error
    if hasattr(getattr(trtp.op, PLUGIN_NAMESPACE, None), PLUGIN_OP):
        return
    kernel = kernels.compile_ptx(capability)

    @trtp.register(PLUGIN_ID)
    def describe(x: trtp.TensorDesc, q: trtp.TensorDesc, s: trtp.TensorDesc) -> trtp.TensorDesc:
        """Describe the product: x [.., M, K] by q [K, N] or [T, K, N] is [.., M, N] in the type of x."""
        out = x.like()
        out.shape_expr[x.ndim - 1] = q.shape_expr[q.ndim - 1]
        return out

    @trtp.aot_impl(PLUGIN_ID)
    def launch(
        x: trtp.TensorDesc, q: trtp.TensorDesc, s: trtp.TensorDesc, outputs: tuple[trtp.TensorDesc], tactic: int
    ) -> tuple[str | bytes, str | bytes, trtp.KernelLaunchParams, trtp.SymIntExprs]:
        """Name the kernel, its PTX, its grid and its scalars; they follow the inputs, before the output."""
        tokens, rows, depth, columns = problem_size(x.shape_expr, q.shape_expr)
        params = trtp.KernelLaunchParams()
        params.grid_x = trtp.cdiv(rows, kernels.BLOCK_M)
        params.grid_y = trtp.cdiv(columns, kernels.BLOCK_N)
        params.grid_z = tokens
        params.block_x = kernel.threads
        params.shared_mem = kernel.shared_bytes
        scalars = trtp.SymIntExprs(3)
        for index, value in enumerate((rows, depth, columns)):
            scalars[index] = trtp.SymInt32(value)
        return kernel.name, kernel.ptx, params, scalars


def problem_size(x: Any, q: Any) -> tuple[Any, Any, Any, Any]:
    """Return tokens, rows, depth and columns of a product, from sizes of its operands, numbers or symbols."""
    depth, columns = q[len(q) - 2], q[len(q) - 1]
    if len(q) == 3:
        return q[0], x[len(x) - 2], depth, columns
    rows = x[0]
    for axis in range(1, len(x) - 1):
        rows = rows * x[axis]
    return 1, rows, depth, columns

"""Compiles the Triton kernels for GPUs that need not be there: `python -m tests.crosscoder.fast.compiled`.

The interpreter takes what the compiler would refuse, so both are asked. Prints one line for each kernel made.
"""

from __future__ import annotations

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from modeldiff.crosscoder.fast import triton_bags
from modeldiff.crosscoder.fast.triton_bags import DOT, TALL, WIDE, Tile

SIZES = {"K": "i32", "D": "i32", "left_stride": "i32", "row_stride": "i32"}
TYPES = {
    "index_K": "*i64",
    "bag_K": "*i64",
    "start_G1": "*i64",
    "weight_K": "*fp32",
    "out_GD": "*fp32",
    "out_K": "*fp32",
}
CAPABILITIES = {"A100": 80, "H100": 90}


def compiled(kernel: triton.JITFunction, tile: Tile, dtype: str, capability: int) -> bytes:
    """The machine code, with left and rows of the type."""
    types = {**SIZES, **TYPES, "left_GD": f"*{dtype}", "rows_ND": f"*{dtype}", "E": "constexpr", "W": "constexpr"}
    source = ASTSource(kernel, {name: types[name] for name in kernel.arg_names}, {"E": tile.entries, "W": tile.columns})
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options={"num_warps": tile.warps}).asm["cubin"]


if __name__ == "__main__":
    for device, capability in CAPABILITIES.items():
        for dtype in ("fp32", "bf16"):
            for kernel, tile in ((triton_bags._sum, TALL), (triton_bags._sum, WIDE), (triton_bags._dot, DOT)):
                assert compiled(kernel, tile, dtype, capability)
                print(f"{device} {dtype} {kernel.__name__} {tile.entries} x {tile.columns}")  # noqa: T201

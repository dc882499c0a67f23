"""SimuMax (Moore Threads, 2025): bfloat16 products, products of many groups and flash attention as training frameworks
call them, as efficiencies; a time is the work over reference rate and efficiency.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ...models.cost.operation import Operation
from .measured import Measured, product, read_table

__all__ = ["operators"]

CONTEXT = "framework"
_PHASE = {"TN": "forward", "NN": "backward_input", "NT": "backward_weight"}
_STAGE = {"fwd": "forward", "bwd_grad_act": "backward_input", "bwd_grad_w": "backward_weight"}
# The backward pass of flash attention does five products where the forward pass does two (Dao, "FlashAttention-2", 2023).
_ATTENTION_BACKWARD = 2.5


def operators(folder: Path) -> Iterator[Measured]:
    """Every row of `op_efficiency.csv`."""
    needed = ("device", "op", "ref_tflops", "efficiency", "key")
    table = read_table(folder, "simumax/op_efficiency.csv", needed)
    if table is None:
        return
    for where, (device, op, reference, efficiency, key) in enumerate(zip(*(table[c] for c in needed), strict=True)):
        said = dict(re.findall(r"(\w+)=([\w.]+)", str(key)))
        operation = _operation(str(op), said)
        if operation is None or not efficiency > 0:
            continue
        seconds = operation.flops / (reference * 1e12 * efficiency)
        yield Measured("simumax/op_efficiency.csv", device, str(op), CONTEXT, (operation,), seconds, where)


def _operation(op: str, said: dict[str, str]) -> Operation | None:
    if op == "matmul":
        out = 4.0 if said.get("out_dtype") == "fp32" else 2.0
        return product(
            int(said["b"]), int(said["m"]), int(said["n"]), int(said["k"]), op="gemm", precision="bfloat16", item=2.0,
            out_item=out * (2 if said.get("accumulate") == "True" else 1), phase=_PHASE[said["layout"]],
        )  # fmt: skip
    if op == "group_matmul":
        groups, m, n, k = (int(said[x]) for x in ("ng", "M", "N", "K"))
        phase = _STAGE[said["stage"]]
        shape = {"forward": (m, n, k), "backward_input": (m, n, k), "backward_weight": (n, k, m)}[phase]
        return product(groups, *shape, op="grouped", precision="bfloat16", item=2.0, phase=phase)
    if op in ("sdp_fwd", "sdp_bwd"):
        batch, length, heads = (int(said[x]) for x in ("batch", "seq_len", "head_num"))
        shared, wide, narrow = (int(said[x]) for x in ("kv_head_num", "qk_head_dim", "v_head_dim"))
        forward = op == "sdp_fwd"
        flops = 2.0 * batch * heads * length**2 * (wide + narrow) * (1 if forward else _ATTENTION_BACKWARD)
        words = batch * length * (heads * (wide + narrow) + shared * (wide + narrow))
        return Operation(
            family="attention", op="attention", dims=(batch * heads, length, length, wide), flops=flops,
            read_bytes=2.0 * words * (1 if forward else 2), write_bytes=2.0 * batch * length * heads * narrow,
            phase="forward" if forward else "backward_input", precision="bfloat16", item_bytes=2,
        )  # fmt: skip
    return None

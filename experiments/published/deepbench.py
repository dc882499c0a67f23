"""DeepBench (Baidu Research, 2016 to 2018): the vendors' libraries called directly, on GPUs and one processor."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from ...models.cost.operation import Operation
from .measured import Measured, product, read_table
from .neusight import convolution

__all__ = ["convolutions", "products", "recurrent", "sparse"]

CONTEXT = "library"
# (precision of the arithmetic, bytes of an operand, bytes of a result) by the table's name.
_PRECISION = {
    "fp32": ("float32", 4, 4),
    "fp16_mixed": ("float16", 2, 2),
    "pseudo_fp16": ("float32", 2, 2),
    "int8_in_int32_acc": ("int8", 1, 4),
}
_LAYOUT = {("N", "N"): "forward", ("T", "N"): "backward_weight", ("N", "T"): "backward_input"}
_GATES = {"vanilla": 1, "gru": 3, "lstm": 4}


def products(folder: Path) -> Iterator[Measured]:
    """`gemm.csv`: M x N results of K multiply-adds; which operand is transposed stands for the phase."""
    needed = ("device", "precision", "M", "N", "K", "transA", "transB", "time_ms")
    table = read_table(folder, "deepbench/gemm.csv", needed)
    if table is None:
        return
    for where, (device, kind, m, n, k, a, b, ms) in enumerate(zip(*(table[c] for c in needed), strict=True)):
        precision, item, out = _PRECISION.get(str(kind), (str(kind), 4, 4))
        # The library's matrices lie column by column: its M is our n.
        operation = product(1, int(n), int(m), int(k), op="gemm", precision=precision, item=item, out_item=out,
                            phase=_LAYOUT.get((str(a), str(b)), "forward"))  # fmt: skip
        yield Measured("deepbench/gemm.csv", device, f"gemm {kind}", CONTEXT, (operation,), ms / 1e3, where)


def convolutions(folder: Path) -> Iterator[Measured]:
    """`conv2d.csv`: forward passes and both gradients."""
    shape = ("W", "H", "C", "N", "K", "R_filter_h", "S_filter_w", "pad_w", "pad_h", "stride_w", "stride_h")
    times = {"fwd_ms": "forward", "bwd_input_ms": "backward_input", "bwd_weight_ms": "backward_weight"}
    table = read_table(folder, "deepbench/conv2d.csv", ("device", "precision", *shape, *times))
    if table is None:
        return
    columns = zip(table.device, table.precision, *(table[c] for c in (*shape, *times)), strict=True)
    for where, (device, kind, w, h, c, n, k, r, s, pad_w, pad_h, stride_w, stride_h, *measured) in enumerate(columns):
        precision, item, _ = _PRECISION.get(str(kind), (str(kind), 4, 4))
        for phase, ms in zip(times.values(), measured, strict=True):
            if not ms > 0:
                continue
            operation = convolution(
                int(n), int(c), int(k), int(r), int(s), int(h), int(w), stride=int(max(stride_w, stride_h)),
                pad=(int(pad_h), int(pad_w)), phase=phase, precision=precision, item=item,
            )  # fmt: skip
            op = f"conv {phase} {kind}"
            yield Measured("deepbench/conv2d.csv", device, op, CONTEXT, (operation,), ms / 1e3, where)


def recurrent(folder: Path) -> Iterator[Measured]:
    """`rnn.csv`: recurrent layers whose input is as wide as their state, all steps of a sequence."""
    times = {"fwd_ms": "forward", "bwd_total_ms": "backward", "bwd_input_ms": "backward_input",
             "bwd_weight_ms": "backward_weight"}  # fmt: skip
    needed = ("device", "precision", "mode", "cell", "hidden", "batch", "timesteps", *times)
    table = read_table(folder, "deepbench/rnn.csv", needed)
    if table is None:
        return
    for where, row in enumerate(zip(*(table[c] for c in needed), strict=True)):
        device, kind, mode, cell, hidden, batch, steps, *measured = row
        if str(cell) not in _GATES:
            continue
        precision, item, _ = _PRECISION.get(str(kind), (str(kind), 4, 4))
        for phase, ms in zip(times.values(), measured, strict=True):
            if ms > 0:
                operation = _step(
                    str(cell), int(hidden), int(batch), int(steps), phase, precision=precision, item=float(item)
                )
                op = f"rnn {mode} {phase} {kind}"
                yield Measured("deepbench/rnn.csv", device, op, CONTEXT, (operation,), ms / 1e3, where)


def _step(cell: str, hidden: int, batch: int, steps: int, phase: str, *, precision: str, item: float) -> Operation:
    wide = _GATES[cell] * hidden
    if phase == "backward_weight":
        # All steps' gradients of the weights are one product.
        return product(1, 2 * hidden, wide, batch * steps, op=cell, precision=precision, item=item, phase=phase,
                       family="rnn")  # fmt: skip
    times = 2 if phase == "backward" else 1
    return product(
        1, batch, wide, 2 * hidden * times, op=cell, precision=precision, item=item, family="rnn", count=steps,
        phase="training" if phase == "backward" else phase,
    )  # fmt: skip


def sparse(folder: Path) -> Iterator[Measured]:
    """`sparse_gemm.csv`: a sparse matrix (M x K, in compressed rows) times a dense one (K x N), and the dense product."""
    needed = ("device", "precision", "M", "N", "K", "sparsity", "sparse_time_ms", "dense_time_ms")
    table = read_table(folder, "deepbench/sparse_gemm.csv", needed)
    if table is None:
        return
    for where, row in enumerate(zip(*(table[c] for c in needed), strict=True)):
        device, kind, m, n, k, empty, sparse_ms, dense_ms = row
        precision, item, out = _PRECISION.get(str(kind), (str(kind), 4, 4))
        name = "deepbench/sparse_gemm.csv"
        if dense_ms > 0:
            dense = product(1, int(n), int(m), int(k), op="gemm", precision=precision, item=item, out_item=out)
            yield Measured(name, device, f"dense {kind}", CONTEXT, (dense,), dense_ms / 1e3, where)
        if sparse_ms > 0:
            entries = math.ceil(m * k * (1 - empty))
            # An entry has a value and a four-byte column, and meets a row of the dense operand.
            operation = Operation(
                family="gather", op="sparse", dims=(int(m), int(n)), flops=2.0 * entries * n,
                read_bytes=float(entries * (item + 4) + k * n * item), write_bytes=float(m * n * out),
                precision=precision, item_bytes=item,
            )  # fmt: skip
            yield Measured(name, device, f"sparse {kind}", CONTEXT, (operation,), sparse_ms / 1e3, where)

"""NeuSight (Lee, Phanishayee, Mahajan, ASPLOS 2025): operators of PyTorch 2 in eager mode, float32 without tf32.

Matrix products, 3 x 3 convolutions, vector operators, and the operators inside of transformers with their backward
passes (`model_layers.csv`).
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from ...models.cost.operation import Operation
from .measured import Measured, product, read_table, streamed

__all__ = ["LayerRow", "convolutions", "layer_rows", "products", "vectors"]

CONTEXT = "pytorch"
IN_NETWORK = "network"
_BINARY = frozenset({"add", "mul", "div", "pow"})
# The table's names of operators with a scalar, and the names that operations go by.
_VECTOR_NAMES = {"addu": "relu", "mulu": "relu", "divu": "relu", "ln": "layernormalization"}
_FLOPS = {"gelu": 5, "tanh": 5, "layernormalization": 7, "softmax": 5}


def products(folder: Path) -> Iterator[Measured]:
    """`gemm.csv`: linear layers and batched products."""
    table = read_table(folder, "neusight/gemm.csv", ("op", "device", "B", "M", "N", "K", "latency_ms"))
    if table is None:
        return
    split = table.src_split if "src_split" in table else [""] * len(table)
    rows = zip(table.device, table.op, table.B, table.M, table.N, table.K, table.latency_ms, split, strict=True)
    for where, (device, op, b, m, n, k, ms, part) in enumerate(rows):
        yield Measured(
            "neusight/gemm.csv", device, op, CONTEXT, (product(int(b), int(m), int(n), int(k), op=op),), ms / 1e3,
            where, str(part),
        )  # fmt: skip


def convolutions(folder: Path) -> Iterator[Measured]:
    """`conv2d.csv`: forward passes of square 3 x 3 convolutions."""
    needed = (
        "device",
        "B",
        "in_channels",
        "out_channels",
        "kernel_size",
        "input_hw",
        "stride",
        "padding",
        "latency_ms",
    )
    table = read_table(folder, "neusight/conv2d.csv", needed)
    if table is None:
        return
    for where, (device, *shape, ms) in enumerate(zip(*(table[c] for c in needed), strict=True)):
        n, c, k, r, hw, stride, pad = (int(v) for v in shape)
        operation = convolution(n, c, k, r, r, hw, hw, stride=stride, pad=(pad, pad))
        yield Measured("neusight/conv2d.csv", device, "conv", CONTEXT, (operation,), ms / 1e3, where)


def convolution(
    n: int, c: int, k: int, r: int, s: int, h: int, w: int, *, stride: int, pad: tuple[int, int],
    phase: str = "forward", precision: str = "float32", item: float = 4.0,
) -> Operation:  # fmt: skip
    """A convolution of n samples of c x h x w with k filters of r x s."""
    p, q = (h + 2 * pad[0] - r) // stride + 1, (w + 2 * pad[1] - s) // stride + 1
    data, result, weights = n * c * h * w, n * k * p * q, k * c * r * s
    written = {"forward": result, "backward_input": data, "backward_weight": weights}[phase]
    return Operation(
        family="conv",
        op="conv",
        dims=(n, c, k, r, s, p, q, stride, 1),
        flops=2.0 * result * c * r * s,
        read_bytes=item * (data + result + weights - written),
        write_bytes=item * written,
        phase=phase,
        precision=precision,
        item_bytes=max(int(item), 1),
    )


def vectors(folder: Path) -> Iterator[Measured]:
    """`vector.csv`: element-wise operators, layer normalisation and softmax on B rows of H elements."""
    table = read_table(folder, "neusight/vector.csv", ("op", "device", "B", "H", "latency_ms"))
    if table is None:
        return
    rows = zip(table.device, table.op, table.B, table.H, table.latency_ms, strict=True)
    for where, (device, op, b, h, ms) in enumerate(rows):
        yield Measured("neusight/vector.csv", device, op, CONTEXT, (vector(op, int(b), int(h)),), ms / 1e3, where)


def vector(op: str, rows: int, columns: int) -> Operation:
    """An operation by the table's name."""
    name = _VECTOR_NAMES.get(op, op)
    family = {"layernormalization": "normalisation", "softmax": "softmax"}.get(name, "elementwise")
    return streamed(family, name, rows, columns, reads=2 if op in _BINARY else 1, flops=_FLOPS.get(name, 1))


class LayerRow(NamedTuple):
    """One row of `model_layers.csv`: an operator's operations forward and backward, and how long both took."""

    device: str
    case: str
    op: str
    times: int
    forward: tuple[Operation, ...]
    backward: tuple[Operation, ...]
    forward_s: float
    backward_s: float
    where: int


def layer_rows(folder: Path) -> Iterator[LayerRow]:
    """`model_layers.csv`, every row of it."""
    needed = ("device", "case", "op_name", "input_shapes", "output_shape", "count", "fwd_ms_mean", "bwd_ms_mean")
    table = read_table(folder, "neusight/model_layers.csv", needed)
    if table is None:
        return
    for where, (device, case, op, inputs, output, count, forward, backward) in enumerate(
        zip(*(table[c] for c in needed), strict=True)
    ):
        shapes = [tuple(int(d) for d in shape) for shape in _parsed(inputs)]
        result = tuple(int(d) for d in _parsed(output))
        ahead, back = _layer(op.rpartition(".")[2], op, shapes, result)
        yield LayerRow(device, case, op, int(count), ahead, back, forward / 1e3, backward / 1e3, where)


def _parsed(text: str) -> Any:
    return ast.literal_eval(text)


_WEIGHTED = frozenset({"addmm", "lm_head", "fc#", "k_proj", "q_proj", "v_proj", "out_proj", "classifier", "dense",
                       "query", "key", "value", "decoder", "pooler", "Linear"})  # fmt: skip
_NORMALISED = frozenset({"ln_#", "ln_f", "LayerNorm", "final_layer_norm", "self_attn_layer_norm"})
_LOOKED_UP = frozenset({"wte", "wpe", "embed_tokens", "embedding", "word_embeddings", "position_embeddings",
                        "token_type_embeddings"})  # fmt: skip
# Tensors that the forward pass reads and writes, and those of the backward pass, by operator.
_TRAFFIC = {
    "contiguous": ("clip", 1, 1, 0, 0), "reshape": ("clip", 1, 1, 0, 0), "to": ("clip", 1, 1, 0, 0),
    "bool": ("clip", 1, 0.25, 0, 0), "getitem": ("clip", 1, 1, 0, 0), "split": ("clip", 1, 1, 1, 1),
    "full": ("clip", 0, 1, 0, 0), "ones": ("clip", 0, 1, 0, 0), "arange": ("clip", 0, 1, 0, 0),
    "tensor": ("clip", 0, 1, 0, 0), "add": ("add", 2, 1, 0, 0), "sub": ("sub", 2, 1, 0, 0),
    "max": ("relu", 1, 1, 2, 1), "mul": ("mul", 2, 1, 3, 2), "truediv": ("div", 2, 1, 3, 2),
    "pow": ("pow", 2, 1, 2, 1), "where": ("where", 1.25, 1, 1.25, 1), "masked_fill": ("clip", 1.25, 1, 1.25, 1),
    "masked_fill_": ("clip", 1.25, 1, 1.25, 1), "lt": ("clip", 0.5, 0.25, 0, 0), "cumsum": ("reduce", 1, 1, 1, 1),
    "tanh": ("tanh", 1, 1, 2, 1), "gelu": ("gelu", 1, 1, 2, 1), "activation_fn": ("relu", 1, 1, 2, 1),
    "intermediate_act_fn": ("gelu", 1, 1, 2, 1), "relu": ("relu", 1, 1, 2, 1),
    # Backward of dropout in eager mode: the mask to floats, times the scale, times the gradient, a kernel each.
    "dropout": ("dropout", 1, 1.25, 3.25, 3),
}  # fmt: skip


def _layer(
    short: str, name: str, inputs: list[tuple[int, ...]], result: tuple[int, ...]
) -> tuple[tuple[Operation, ...], tuple[Operation, ...]]:
    """Operations of a forward and a backward pass."""
    rows, columns = max(prod(result[:-1]), 1), max(result[-1] if result else 1, 1)
    if short in ("matmul", "bmm") and len(inputs) > 1:
        a, b = inputs[0], inputs[1]
        batch, m, k, n = prod(a[:-2]), a[-2], a[-1], b[-1]
        return (product(batch, m, n, k, op="bmm"),), (
            product(batch, m, k, n, op="bmm", phase="backward_input"),
            product(batch, k, n, m, op="bmm", phase="backward_input"),
        )
    if short in _WEIGHTED:
        operand = inputs[1] if short == "addmm" else inputs[0]
        k = operand[-1]
        m = prod(operand[:-1])
        return (product(1, m, columns, k),), (
            product(1, m, k, columns, phase="backward_input"),
            product(1, k, columns, m, phase="backward_weight"),
        )
    if short in _NORMALISED:
        return (
            (streamed("normalisation", "layernormalization", rows, columns, flops=7),),
            (
                # Data and gradient are read once for the data's gradient and once for those of scale and shift.
                streamed(
                    "normalisation", "layernormalization", rows, columns, reads=4, flops=14, phase="backward_input"
                ),
            ),
        )
    if short == "softmax":
        return (
            (streamed("softmax", "softmax", rows, columns, flops=5),),
            (streamed("softmax", "softmax", rows, columns, reads=2, flops=4, phase="backward_input"),),
        )
    if short in _LOOKED_UP:
        return (
            (streamed("gather", "gather", rows, columns),),
            (streamed("gather", "gather", rows, columns, reads=2, phase="backward_weight"),),
        )
    if "drop" in short:
        short = "dropout"
    kind, reads, writes, back_reads, back_writes = _TRAFFIC.get(short, ("relu", 1, 1, 2, 1))
    whole = [s for s in inputs if prod(s) == prod(result)]
    if kind in ("add", "sub", "mul", "div", "pow") and len(whole) < 2:
        # The other operand is a scalar or is broadcast, and so stays in a cache. A power's exponent is a small integer
        # there, which costs no more than a product.
        # Its gradient is three kernels: the power of one less, times the exponent, times the gradient.
        reads = 1
        back_reads, back_writes = (4, 3) if kind == "pow" else (min(back_reads, 1), min(back_writes, 1))
        kind = "relu"
    family = "reduction" if kind == "reduce" else "elementwise"
    flops = _FLOPS.get(kind, 1)
    forward = (streamed(family, kind, rows, columns, reads=reads, writes=writes, flops=flops),)
    backward = streamed(
        family, kind, rows, columns, reads=back_reads, writes=back_writes, flops=flops, phase="backward_input"
    )
    return forward, (backward,) if back_writes else ()

"""Justus, Brennan, Bonner, McGough, "Predicting the computational cost of deep learning models", IEEE Big Data 2018:
random layers in TensorFlow 1, forward only or with backward pass and update.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ...models.cost.operation import Operation
from .measured import Measured, read_table

__all__ = ["convolutions", "dense"]

CONTEXT = "tensorflow"
# Tensors of parameters that an update reads and writes beside the gradient.
_STATE = {"none": 0, "sgd": 0, "momentum": 2, "adagrad": 2, "rmsprop": 4, "adadelta": 4, "adam": 4}


def convolutions(folder: Path) -> Iterator[Measured]:
    """`conv.csv`: a convolution with bias and activation where the row has them, as one operation."""
    needed = ("device", "batchsize", "matsize", "kernelsize", "channels_in", "channels_out", "strides", "padding",
              "use_bias", "activation", "optimizer", "time_ms_median")  # fmt: skip
    table = read_table(folder, "justus2018/conv.csv", needed)
    if table is None:
        return
    for where, row in enumerate(zip(*(table[c] for c in needed), strict=True)):
        device, n, hw, r, c, k, stride, padding, bias, activation, optimizer, ms = row
        n, hw, r, c, k, stride = (int(v) for v in (n, hw, r, c, k, stride))
        p = -(-hw // stride) if padding == "SAME" else (hw - r) // stride + 1
        if p < 1:
            continue
        trained = optimizer != "none"
        result, data, weights = n * k * p * p, n * c * hw * hw, k * c * r * r
        passes = 2 * int(bias) + 2 * (activation != "none")
        words = data + result + weights + passes * result
        if trained:
            # The gradient of the weights reads data and the result's gradient; the layer's input has none.
            words += data + 2 * result + weights + result * (bias + 2 * (activation != "none"))
            words += weights * (3 + _STATE.get(optimizer, 2))
        operation = Operation(
            family="conv", op="conv", dims=(n, c, k, r, r, p, p, stride, 1),
            flops=2.0 * result * c * r * r * (2 if trained else 1), read_bytes=4.0 * (words - result),
            write_bytes=4.0 * result, phase="training" if trained else "forward",
        )  # fmt: skip
        op = "conv training" if trained else "conv forward"
        yield Measured("justus2018/conv.csv", device, op, CONTEXT, (operation,), ms / 1e3, where)


def dense(folder: Path) -> Iterator[Measured]:
    """`dense.csv`: a dense layer with activation where the row has one, as one operation."""
    needed = ("device", "batchsize", "dim_input", "dim_output", "activation", "optimizer", "time_ms_median")
    table = read_table(folder, "justus2018/dense.csv", needed)
    if table is None:
        return
    for where, row in enumerate(zip(*(table[c] for c in needed), strict=True)):
        device, n, k, wide, activation, optimizer, ms = row
        n, k, wide = int(n), int(k), int(wide)
        trained = optimizer != "none"
        words = n * (k + wide) + k * wide + 2 * (activation != "none") * n * wide
        if trained:
            words += n * (k + wide) + k * wide * (4 + _STATE.get(optimizer, 2))
        operation = Operation(
            family="matmul", op="linear", dims=(1, n, wide, k), flops=2.0 * n * k * wide * (2 if trained else 1),
            read_bytes=4.0 * (words - n * wide), write_bytes=4.0 * n * wide,
            phase="training" if trained else "forward",
        )  # fmt: skip
        op = "dense training" if trained else "dense forward"
        yield Measured("justus2018/dense.csv", device, op, CONTEXT, (operation,), ms / 1e3, where)

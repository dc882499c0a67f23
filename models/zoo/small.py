"""Small networks by their hyper-parameters: what the demo trains and what tests are made of.

Each function returns a standard ``onnx.ModelProto`` with a symbolic batch dimension named ``batch``, weights drawn
from a seeded generator and no loss (the import appends one). Weights have He's normal initialisation (He et al.,
"Delving Deep into Rectifiers", ICCV 2015, eq. 10): zero mean, variance 2 / fan-in; biases are zero.

>>> model = mlp((4, 8, 3))
>>> [node.op_type for node in model.graph.node]
['Gemm', 'Relu', 'Gemm']
>>> sum(int(np.prod(w.dims)) for w in model.graph.initializer)
67
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod, sqrt
from typing import Literal

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

__all__ = ["conv_bn_net", "digits_cnn", "mlp"]

DType = Literal["float32", "float64"]
OPSET = 20
IR_VERSION = 10
ELEMENT_TYPES = {"float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE}


@dataclass(kw_only=True)
class _Sketch:
    """Nodes and weights while a network is being put together; `tensor` is the last result."""

    dtype: DType
    seed: int
    tensor: str = "x"
    nodes: list[NodeProto] = field(default_factory=list)
    weights: list[TensorProto] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.dtype not in ELEMENT_TYPES:
            raise ValueError(f"dtype {self.dtype!r}: expected one of {', '.join(ELEMENT_TYPES)}")
        self.rng = np.random.default_rng(self.seed)

    def weight(self, name: str, value: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(value, dtype=self.dtype), name))
        return name

    def he(self, name: str, shape: Sequence[int], fan_in: int) -> str:
        return self.weight(name, self.rng.standard_normal(tuple(shape)) * sqrt(2.0 / fan_in))

    def node(self, op_type: str, name: str, operands: Sequence[str] = (), **attributes: object) -> None:
        self.nodes.append(helper.make_node(op_type, [self.tensor, *operands], [name], name=name, **attributes))
        self.tensor = name

    def dense(self, name: str, fan_in: int, fan_out: int) -> None:
        """``x @ W.T + b``, with the weight as PyTorch stores it: [fan_out, fan_in]."""
        weight = self.he(f"{name}.weight", (fan_out, fan_in), fan_in)
        bias = self.weight(f"{name}.bias", np.zeros(fan_out))
        self.node("Gemm", name, (weight, bias), transB=1)

    def conv(self, name: str, channels_in: int, channels_out: int, *, stride: int = 1, bias: bool = True) -> None:
        """A 3 × 3 convolution that keeps the picture's size at stride 1."""
        operands = [self.he(f"{name}.weight", (channels_out, channels_in, 3, 3), channels_in * 9)]
        if bias:
            operands.append(self.weight(f"{name}.bias", np.zeros(channels_out)))
        self.node("Conv", name, operands, kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[stride, stride])

    def batch_norm(self, name: str, channels: int) -> None:
        """BatchNormalization as exporters write it: inference form, running mean 0 and variance 1."""
        parts = (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0))
        operands = [self.weight(f"{name}.{part}", np.full(channels, value)) for part, value in parts]
        self.node("BatchNormalization", name, operands, epsilon=1e-5, momentum=0.9)

    def model(self, graph_name: str, input_shape: Sequence[int], classes: int) -> ModelProto:
        element_type = ELEMENT_TYPES[self.dtype]
        self.nodes[-1].output[0] = "logits"
        graph = helper.make_graph(
            self.nodes,
            graph_name,
            [helper.make_tensor_value_info("x", element_type, ["batch", *input_shape])],
            [helper.make_tensor_value_info("logits", element_type, ["batch", classes])],
            self.weights,
        )
        opset = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION, producer_name="hpdlf")


def mlp(
    widths: Sequence[int], *, activation: str = "Relu", dtype: DType = "float32", seed: int = 0, name: str = "mlp"
) -> ModelProto:
    """A perceptron: input "x" [batch, widths[0]], dense layers of the further widths, output "logits".

    `activation`, an ONNX operator of one input, stands between the layers. Operators are named ``dense1``, ``act1``,
    ``dense2`` and so on.
    """
    if len(widths) < 2 or min(widths) < 1:
        raise ValueError(f"widths {tuple(widths)}: expected at least an input and an output width, all positive")
    sketch = _Sketch(dtype=dtype, seed=seed)
    for i, (fan_in, fan_out) in enumerate(pairwise(widths), start=1):
        sketch.dense(f"dense{i}", fan_in, fan_out)
        if i < len(widths) - 1:
            sketch.node(activation, f"act{i}")
    return sketch.model(name, widths[:1], widths[-1])


def digits_cnn(
    *, channels: tuple[int, int] = (16, 32), hidden: int = 64, dtype: DType = "float32", seed: int = 0
) -> ModelProto:
    """The demo's network for 8 × 8 grey digits: input "x" [batch, 1, 8, 8], output "logits" [batch, 10].

    Two 3 × 3 convolutions with ReLU, each followed by 2 × 2 max-pooling, then a hidden dense layer.
    """
    sketch = _Sketch(dtype=dtype, seed=seed)
    for i, (channels_in, channels_out) in enumerate(((1, channels[0]), channels), start=1):
        sketch.conv(f"conv{i}", channels_in, channels_out)
        sketch.node("Relu", f"relu{i}")
        sketch.node("MaxPool", f"pool{i}", kernel_shape=[2, 2], strides=[2, 2])
    sketch.node("Flatten", "flatten", axis=1)
    sketch.dense("dense1", channels[1] * 2 * 2, hidden)
    sketch.node("Relu", "relu3")
    sketch.dense("dense2", hidden, 10)
    return sketch.model("digits_cnn", (1, 8, 8), 10)


def conv_bn_net(
    *,
    shape: tuple[int, int, int] = (3, 8, 8),
    channels: Sequence[int] = (8, 16),
    classes: int = 10,
    dtype: DType = "float32",
    seed: int = 0,
) -> ModelProto:
    """A ResNet in miniature: input "x" [batch, *shape], output "logits" [batch, classes].

    Convolutions with BatchNormalization and ReLU, every one after the first with stride 2, a residual sum around a last
    convolution of unchanged width, global average pooling and a dense layer.
    """
    if not channels or prod(shape) < 1:
        raise ValueError(f"channels {tuple(channels)}, shape {shape}: expected at least one channel count and no zeros")
    sketch = _Sketch(dtype=dtype, seed=seed)
    before = shape[0]
    for i, width in enumerate(channels, start=1):
        sketch.conv(f"conv{i}", before, width, stride=1 if i == 1 else 2, bias=False)
        sketch.batch_norm(f"bn{i}", width)
        sketch.node("Relu", f"relu{i}")
        before = width
    shortcut = sketch.tensor
    sketch.conv("conv_res", before, before, bias=False)
    sketch.batch_norm("bn_res", before)
    sketch.node("Add", "residual", (shortcut,))
    sketch.node("Relu", "relu_res")
    sketch.node("GlobalAveragePool", "gap")
    sketch.node("Flatten", "flatten", axis=1)
    sketch.dense("dense", before, classes)
    return sketch.model("conv_bn_net", shape, classes)

"""Networks that people train, by their hyper-parameters: a ResNet-18, a MobileNetV2, a U-Net and a stack of GPT blocks.

As in :mod:`.small`: a standard ``onnx.ModelProto`` each, with a symbolic batch, weights drawn from a seeded generator,
and no loss. Sources: He et al. 2016 (arXiv 1512.03385), table 1; Sandler et al. 2018 (arXiv 1801.04381), table 2;
Ronneberger et al. 2015 (arXiv 1505.04597), with padded convolutions, normalisation and half the channels; Radford et al.
2019, section 2.3 (normalisation before each part).

>>> len([n for n in resnet18(image=64).graph.node if n.op_type == "Conv"])
20
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod, sqrt

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from .small import IR_VERSION, OPSET

__all__ = ["gpt_blocks", "mobilenet_v2", "resnet18", "unet"]


@dataclass(kw_only=True)
class _Builder:
    """Nodes and weights of a graph that branches: every method takes the tensors that it reads and returns its result."""

    seed: int = 0
    nodes: list[NodeProto] = field(default_factory=list)
    weights: list[TensorProto] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    def weight(self, shape: Sequence[int], fan_in: int) -> str:
        """Normal with variance 2 / fan_in."""
        return self.constant(self.rng.standard_normal(tuple(shape), dtype=np.float32) * sqrt(2.0 / fan_in), "weight")

    def constant(self, value: np.ndarray, kind: str) -> str:
        name = f"{kind}{len(self.weights)}"
        array = np.ascontiguousarray(value, dtype=np.int64 if value.dtype.kind == "i" else np.float32)
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def node(self, op_type: str, *operands: str, **attributes: object) -> str:
        name = f"{op_type.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, operands, [name], name=name, **attributes))
        return name

    def conv(self, x: str, channels: int, filters: int, size: int, *, stride: int = 1, groups: int = 1) -> str:
        """A convolution that keeps the picture's size at stride 1, normalised per channel."""
        weight = self.weight((filters, channels // groups, size, size), channels // groups * size * size)
        y = self.node(
            "Conv",
            x,
            weight,
            kernel_shape=[size, size],
            strides=[stride, stride],
            pads=[(size - 1) // 2] * 4,
            group=groups,
        )
        parts = [self.constant(np.full(filters, v), "norm") for v in (1.0, 0.0, 0.0, 1.0)]
        return self.node("BatchNormalization", y, *parts, epsilon=1e-5, momentum=0.9)

    def relu(self, x: str) -> str:
        return self.node("Relu", x)

    def dense(self, x: str, fan_in: int, fan_out: int) -> str:
        """``x @ w + b`` over the last axis."""
        y = self.node("MatMul", x, self.weight((fan_in, fan_out), fan_in))
        return self.node("Add", y, self.constant(np.zeros(fan_out), "bias"))

    def classify(self, x: str, channels: int, classes: int) -> str:
        """The mean over all positions, then a dense layer."""
        flat = self.node("Flatten", self.node("GlobalAveragePool", x), axis=1)
        weight = self.weight((classes, channels), channels)
        return self.node("Gemm", flat, weight, self.constant(np.zeros(classes), "bias"), transB=1)

    def layer_norm(self, x: str, width: int) -> str:
        parts = [self.constant(np.full(width, v), "norm") for v in (1.0, 0.0)]
        return self.node("LayerNormalization", x, *parts, axis=-1, epsilon=1e-5)

    def model(self, name: str, inputs: Sequence[int], output: str, outputs: Sequence[int]) -> ModelProto:
        self.nodes[-1].output[0] = "y"
        assert self.nodes[-1].name == output
        graph = helper.make_graph(
            self.nodes,
            name,
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *inputs])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", *outputs])],
            self.weights,
        )
        opset = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION, producer_name="hpdlf")


def resnet18(*, image: int = 224, classes: int = 1000, seed: int = 0) -> ModelProto:
    """Input "x" [batch, 3, image, image], output "y" [batch, classes]; 11.7 million parameters at 1,000 classes."""
    b = _Builder(seed=seed)
    x = b.relu(b.conv("x", 3, 64, 7, stride=2))
    x = b.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    before = 64
    for channels in (64, 128, 256, 512):
        for block in range(2):
            stride = 2 if block == 0 and channels > 64 else 1
            y = b.relu(b.conv(x, before, channels, 3, stride=stride))
            y = b.conv(y, channels, channels, 3)
            shortcut = x if before == channels else b.conv(x, before, channels, 1, stride=stride)
            x = b.relu(b.node("Add", y, shortcut))
            before = channels
    return b.model("resnet18", (3, image, image), b.classify(x, 512, classes), (classes,))


# Expansion, channels, repeats, stride.
_INVERTED = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def mobilenet_v2(*, image: int = 224, classes: int = 1000, seed: int = 0) -> ModelProto:
    """Input "x" [batch, 3, image, image], output "y" [batch, classes]; 3.5 million parameters at 1,000 classes."""
    b = _Builder(seed=seed)
    low, high = b.constant(np.array(0.0), "low"), b.constant(np.array(6.0), "high")

    def relu6(tensor: str) -> str:
        return b.node("Clip", tensor, low, high)

    x = relu6(b.conv("x", 3, 32, 3, stride=2))
    before = 32
    for expansion, channels, repeats, first in _INVERTED:
        for repeat in range(repeats):
            stride, wide = first if repeat == 0 else 1, before * expansion
            y = relu6(b.conv(x, before, wide, 1)) if expansion > 1 else x
            y = b.conv(relu6(b.conv(y, wide, wide, 3, stride=stride, groups=wide)), wide, channels, 1)
            x = b.node("Add", x, y) if stride == 1 and before == channels else y
            before = channels
    x = relu6(b.conv(x, before, 1280, 1))
    return b.model("mobilenet_v2", (3, image, image), b.classify(x, 1280, classes), (classes,))


def unet(*, image: int = 128, channels: int = 32, levels: int = 4, classes: int = 2, seed: int = 0) -> ModelProto:
    """Input "x" [batch, 3, image, image], output "y" [batch, classes, image, image]; `image` a multiple of 2^levels."""
    if image % 2**levels:
        raise ValueError(f"image {image}: expected a multiple of {2**levels}")
    b = _Builder(seed=seed)

    def twice(x: str, before: int, after: int) -> str:
        return b.relu(b.conv(b.relu(b.conv(x, before, after, 3)), after, after, 3))

    x, before, kept = "x", 3, []
    for level in range(levels):
        after = channels * 2**level
        x = twice(x, before, after)
        kept.append((x, after))
        x, before = b.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]), after
    x, before = twice(x, before, 2 * before), 2 * before
    for skip, after in reversed(kept):
        weight, bias = b.weight((before, after, 2, 2), before), b.constant(np.zeros(after), "bias")
        x = b.node("ConvTranspose", x, weight, bias, kernel_shape=[2, 2], strides=[2, 2])
        x = twice(b.node("Concat", skip, x, axis=1), 2 * after, after)
        before = after
    weight, bias = b.weight((classes, before, 1, 1), before), b.constant(np.zeros(classes), "bias")
    y = b.node("Conv", x, weight, bias, kernel_shape=[1, 1])
    return b.model("unet", (3, image, image), y, (classes, image, image))


def gpt_blocks(
    *, layers: int = 4, width: int = 512, heads: int = 8, tokens: int = 256, seed: int = 0, name: str = "gpt_blocks"
) -> ModelProto:
    """Input "x" [batch, tokens, width], embedded already; output "y" of the same shape, normalised.

    Each block is causal self-attention and a perceptron four times as wide (GELU), both behind a layer normalisation
    and beside a residual sum.
    """
    if width % heads or prod((layers, width, heads, tokens)) < 1:
        raise ValueError(f"width {width}, heads {heads}: expected heads that divide the width, and no zeros")
    b = _Builder(seed=seed)
    part = width // heads
    split, joined = (b.constant(np.array(s), "shape") for s in ((0, tokens, heads, part), (0, tokens, width)))
    scale = b.constant(np.array(1.0 / sqrt(part)), "scale")
    mask = b.constant(np.triu(np.full((tokens, tokens), -1e9), 1), "mask")
    x = "x"
    for _ in range(layers):
        normed = b.layer_norm(x, width)
        q, k, v = (b.node("Reshape", b.dense(normed, width, width), split) for _ in range(3))
        q, v = (b.node("Transpose", t, perm=[0, 2, 1, 3]) for t in (q, v))
        scores = b.node("Mul", b.node("MatMul", q, b.node("Transpose", k, perm=[0, 2, 3, 1])), scale)
        mixed = b.node("MatMul", b.node("Softmax", b.node("Add", scores, mask), axis=-1), v)
        mixed = b.node("Reshape", b.node("Transpose", mixed, perm=[0, 2, 1, 3]), joined)
        x = b.node("Add", x, b.dense(mixed, width, width))
        y = b.node("Gelu", b.dense(b.layer_norm(x, width), width, 4 * width))
        x = b.node("Add", x, b.dense(y, 4 * width, width))
    return b.model(name, (tokens, width), b.layer_norm(x, width), (tokens, width))

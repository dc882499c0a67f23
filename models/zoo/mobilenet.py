"""MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381, table 2)."""

from __future__ import annotations

from onnx import ModelProto

from .builder import Builder
from .convolution import Map, add, conv, picture, scores

__all__ = ["mobilenet_v2"]

# Expansion, channels, repeats, stride.
_INVERTED = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def mobilenet_v2(
    *, image: int = 224, classes: int = 1000, dropout: float = 0.0, seed: int | None = 0, name: str = "mobilenet_v2"
) -> ModelProto:
    """Input "x" [batch, 3, image, image], output "y" [batch, classes]; 3.5 million parameters at 1,000 classes."""
    b = Builder(name=name, seed=seed)
    low, high = b.constant(0.0), b.constant(6.0)

    def relu6(x: Map) -> Map:
        return x._replace(tensor=b.node("Clip", x.tensor, low, high))

    x = relu6(conv(b, picture(b, 3, image, image), 32, 3, stride=2, activation="", name="stem"))
    for stage, (expansion, channels, repeats, first) in enumerate(_INVERTED):
        for repeat in range(repeats):
            with b.scope(f"stage{stage}.{repeat}"):
                wide = x.channels * expansion
                y = relu6(conv(b, x, wide, 1, activation="", name="expand")) if expansion > 1 else x
                stride = first if repeat == 0 else 1
                y = relu6(conv(b, y, wide, 3, stride=stride, groups=wide, activation="", name="depthwise"))
                y = conv(b, y, channels, 1, activation="", name="project")
                x = add(b, x, y) if stride == 1 and x.channels == channels else y
    x = relu6(conv(b, x, 1280, 1, activation="", name="last"))
    return b.model(y=(scores(b, x, classes, dropout=dropout), (classes,)))

"""EfficientNet B0 to B7 (Tan and Le 2019, arXiv 1905.11946, table 1; widths and depths by compound scaling)."""

from __future__ import annotations

from math import ceil

from onnx import ModelProto

from .builder import Builder, need
from .convolution import Map, add, conv, picture, scores

__all__ = ["efficientnet"]

# Expansion, kernel, stride, channels, repeats of B0.
_STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
# Width, depth, image, dropout of B0 to B7.
_SCALES = (
    (1.0, 1.0, 224, 0.2),
    (1.0, 1.1, 240, 0.2),
    (1.1, 1.2, 260, 0.3),
    (1.2, 1.4, 300, 0.3),
    (1.4, 1.8, 380, 0.4),
    (1.6, 2.2, 456, 0.4),
    (1.8, 2.6, 528, 0.5),
    (2.0, 3.1, 600, 0.5),
)


def _channels(width: float, channels: int) -> int:
    """The nearest multiple of 8 that is not more than a tenth below."""
    wanted = channels * width
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded


def _block(b: Builder, x: Map, *, expansion: int, kernel: int, stride: int, channels: int) -> Map:
    """An inverted bottleneck whose channels are weighted by their means."""
    wide = x.channels * expansion
    y = conv(b, x, wide, 1, activation="Swish", name="expand") if expansion > 1 else x
    y = conv(b, y, wide, kernel, stride=stride, groups=wide, activation="Swish", name="depthwise")
    mean = Map(b.node("GlobalAveragePool", y.tensor), wide, (1, 1))
    gate = conv(b, mean, max(x.channels // 4, 1), 1, norm="none", activation="Swish", name="squeeze")
    gate = conv(b, gate, wide, 1, norm="none", activation="Sigmoid", name="excite")
    y = y._replace(tensor=b.node("Mul", y.tensor, gate.tensor))
    y = conv(b, y, channels, 1, activation="", name="project")
    return add(b, y, x) if stride == 1 and x.channels == channels else y


def efficientnet(
    *,
    size: int = 0,
    image: int | None = None,
    classes: int = 1000,
    seed: int | None = None,
    name: str | None = None,
) -> ModelProto:
    """Input "x" [batch, 3, image, image], output "y" [batch, classes]; `size` 0 (5.3 million parameters) to 7.

    The picture is as large as the paper has it for that size unless given. Whole blocks are not dropped out.
    """
    need("size", size, 0 <= size < len(_SCALES), "0 to 7")
    width, depth, usual, dropout = _SCALES[size]
    side = image or usual
    b = Builder(name=name or f"efficientnet_b{size}", seed=seed)
    x = conv(b, picture(b, 3, side, side), _channels(width, 32), 3, stride=2, activation="Swish", name="stem")
    for stage, (expansion, kernel, first, channels, repeats) in enumerate(_STAGES):
        for repeat in range(ceil(depth * repeats)):
            with b.scope(f"stage{stage + 1}.{repeat}"):
                x = _block(
                    b,
                    x,
                    expansion=expansion,
                    kernel=kernel,
                    stride=first if repeat == 0 else 1,
                    channels=_channels(width, channels),
                )
    x = conv(b, x, _channels(width, 1280), 1, activation="Swish", name="last")
    return b.model(y=(scores(b, x, classes, dropout=dropout), (classes,)))

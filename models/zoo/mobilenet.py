"""MobileNets 2 (Sandler et al. 2018, arXiv 1801.04381, table 2) and 3 (Howard et al. 2019, arXiv 1905.02244, tables 1 and 2)."""

from __future__ import annotations

from onnx import ModelProto

from .builder import Builder, need
from .convolution import Map, add, conv, picture, scores

__all__ = ["mobilenet_v2", "mobilenet_v3"]

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


# By size: what each block is (kernel, expanded channels, channels, squeeze and excite, activation, stride), and the width of the
# layer before the scores.
MOBILENET_V3 = {
    "large": (
        (
            (3, 16, 16, False, "Relu", 1),
            (3, 64, 24, False, "Relu", 2),
            (3, 72, 24, False, "Relu", 1),
            (5, 72, 40, True, "Relu", 2),
            (5, 120, 40, True, "Relu", 1),
            (5, 120, 40, True, "Relu", 1),
            (3, 240, 80, False, "HardSwish", 2),
            (3, 200, 80, False, "HardSwish", 1),
            (3, 184, 80, False, "HardSwish", 1),
            (3, 184, 80, False, "HardSwish", 1),
            (3, 480, 112, True, "HardSwish", 1),
            (3, 672, 112, True, "HardSwish", 1),
            (5, 672, 160, True, "HardSwish", 2),
            (5, 960, 160, True, "HardSwish", 1),
            (5, 960, 160, True, "HardSwish", 1),
        ),
        1280,
    ),
    "small": (
        (
            (3, 16, 16, True, "Relu", 2),
            (3, 72, 24, False, "Relu", 2),
            (3, 88, 24, False, "Relu", 1),
            (5, 96, 40, True, "HardSwish", 2),
            (5, 240, 40, True, "HardSwish", 1),
            (5, 240, 40, True, "HardSwish", 1),
            (5, 120, 48, True, "HardSwish", 1),
            (5, 144, 48, True, "HardSwish", 1),
            (5, 288, 96, True, "HardSwish", 2),
            (5, 576, 96, True, "HardSwish", 1),
            (5, 576, 96, True, "HardSwish", 1),
        ),
        1024,
    ),
}
EPSILON = 1e-3


def _excite(b: Builder, x: Map) -> Map:
    """Channels weighted by a small perceptron of their means, a quarter as wide (a multiple of 8)."""
    quarter = x.channels // 4
    narrow = max(8, (quarter + 4) // 8 * 8)
    narrow += 8 * (narrow < 0.9 * quarter)
    mean = Map(b.node("GlobalAveragePool", x.tensor), x.channels, (1, 1))
    gate = conv(b, mean, narrow, 1, norm="none", name="squeeze")
    gate = conv(b, gate, x.channels, 1, norm="none", activation="", name="excite")
    share = b.node("HardSigmoid", gate.tensor, alpha=1 / 6, beta=0.5)
    return x._replace(tensor=b.node("Mul", x.tensor, share))


def mobilenet_v3(
    *,
    size: str = "large",
    image: int = 224,
    classes: int = 1000,
    dropout: float = 0.0,
    seed: int | None = 0,
    name: str | None = None,
) -> ModelProto:
    """Input "x" [batch, 3, image, image], output "y" [batch, classes]; `size` "large" (5.5 million parameters at 1,000
    classes) or "small" (2.5 million).
    """
    need("size", size, size in MOBILENET_V3, "large or small")
    blocks, width = MOBILENET_V3[size]
    b = Builder(name=name or f"mobilenet_v3_{size}", seed=seed)
    stem = picture(b, 3, image, image)
    x = conv(b, stem, 16, 3, stride=2, activation="HardSwish", name="stem", epsilon=EPSILON)
    for block, (kernel, wide, channels, excited, activation, stride) in enumerate(blocks):
        with b.scope(f"block{block}"):
            y = x
            if wide != x.channels:
                y = conv(b, y, wide, 1, activation=activation, name="expand", epsilon=EPSILON)
            y = conv(
                b,
                y,
                wide,
                kernel,
                stride=stride,
                groups=wide,
                activation=activation,
                name="depthwise",
                epsilon=EPSILON,
            )
            y = _excite(b, y) if excited else y
            y = conv(b, y, channels, 1, activation="", name="project", epsilon=EPSILON)
            x = add(b, y, x) if stride == 1 and x.channels == channels else y
    x = conv(b, x, 6 * x.channels, 1, activation="HardSwish", name="last", epsilon=EPSILON)
    flat = b.node("Flatten", b.node("GlobalAveragePool", x.tensor), axis=1)
    with b.scope("wide"):
        flat = b.node("HardSwish", b.classify(flat, x.channels, width))
    with b.scope("head"):
        result = b.classify(b.dropout(flat, dropout), width, classes)
    return b.model(y=(result, (classes,)))

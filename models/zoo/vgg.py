"""Plain stacks of convolutions with a large perceptron at their end: VGG and AlexNet.

Sources: Simonyan and Zisserman 2015 (arXiv 1409.1556), table 1, configurations A, B, D, E; Krizhevsky 2014 (arXiv
1404.5997), the "one weird trick" AlexNet of one tower, as torchvision builds it; the same network as the
tf_cnn_benchmarks collection builds it.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnx import ModelProto

from .builder import Builder, need
from .convolution import Map, Norm, conv, picture, pool

__all__ = ["alexnet", "vgg"]

# Convolutions per stage, each stage followed by a max-pool.
_STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


def _perceptron(b: Builder, x: Map, widths: Sequence[int], classes: int, dropout: float) -> str:
    y = b.node("Flatten", x.tensor, axis=1)
    before = x.channels * x.size[0] * x.size[1]
    for number, width in enumerate(widths):
        with b.scope(f"dense{number + 1}"):
            y = b.dropout(b.node("Relu", b.classify(y, before, width)), dropout)
            before = width
    with b.scope("head"):
        return b.classify(y, before, classes)


def vgg(
    *,
    depth: int = 16,
    image: int = 224,
    classes: int = 1000,
    normalised: bool = False,
    dropout: float = 0.5,
    seed: int | None = None,
    name: str | None = None,
) -> ModelProto:
    """Input "x" [batch, 3, image, image], output "y" [batch, classes]; depth 11, 13, 16 (138 million parameters) or 19.

    `normalised` puts a BatchNormalization behind each convolution.
    """
    need("depth", depth, depth in _STAGES, f"one of {', '.join(map(str, _STAGES))}")
    need("image", image, image >= 32, "at least 32")
    b = Builder(name=name or f"vgg{depth}", seed=seed)
    norm: Norm = "batch" if normalised else "none"
    x = picture(b, 3, image, image)
    for stage, (repeats, filters) in enumerate(zip(_STAGES[depth], (64, 128, 256, 512, 512), strict=True)):
        for block in range(repeats):
            x = conv(b, x, filters, 3, norm=norm, bias=True, name=f"stage{stage + 1}.conv{block + 1}")
        x = pool(b, x, 2)
    return b.model(y=(_perceptron(b, x, (4096, 4096), classes, dropout), (classes,)))


def alexnet(
    *,
    variant: str = "one_tower",
    image: int = 224,
    classes: int = 1000,
    dropout: float = 0.5,
    seed: int | None = None,
    name: str = "alexnet",
) -> ModelProto:
    """Input "x" [batch, 3, image, image], output "y" [batch, classes].

    variant  "one_tower" (61.1 million parameters) or "tf_benchmarks" (61.8 million: a wider fourth convolution)
    """
    need("variant", variant, variant in ("one_tower", "tf_benchmarks"), "one_tower or tf_benchmarks")
    need("image", image, image >= 64, "at least 64")
    b = Builder(name=name, seed=seed)
    widths = (64, 192, 384, 256, 256) if variant == "one_tower" else (64, 192, 384, 384, 256)
    x = picture(b, 3, image, image)
    x = conv(b, x, widths[0], 11, stride=4, pad=2, norm="none", name="conv1")
    x = pool(b, x, 3, stride=2)
    x = pool(b, conv(b, x, widths[1], 5, norm="none", name="conv2"), 3, stride=2)
    for number, filters in enumerate(widths[2:], start=3):
        x = conv(b, x, filters, 3, norm="none", name=f"conv{number}")
    x = pool(b, x, 3, stride=2)
    return b.model(y=(_perceptron(b, x, (4096, 4096), classes, dropout), (classes,)))

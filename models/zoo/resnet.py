"""Residual networks: ResNet, ResNeXt, wide and squeeze-and-excitation ones, and their parts for detectors.

Sources: He et al. 2016 (arXiv 1512.03385), table 1; Xie et al. 2017 (arXiv 1611.05431), table 1; Hu et al. 2018 (arXiv
1709.01507), section 4. Version 1 has the stride of a bottleneck in its first convolution (as the paper), version 1.5 in
the 3 x 3 one (as most frameworks train it).
"""

from __future__ import annotations

from collections.abc import Sequence

from onnx import ModelProto

from .builder import Builder, need
from .convolution import Map, Norm, add, conv, picture, pool, relu, scores

__all__ = ["BLOCKS", "resnet", "resnet18", "stages", "stem"]

# Blocks per stage by depth; from 50 on they are bottlenecks.
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def stem(b: Builder, x: Map, *, norm: Norm = "batch", frozen: bool = False) -> Map:
    """7 x 7 convolution and max-pool: a quarter of the picture's size."""
    return pool(b, conv(b, x, 64, 7, stride=2, norm=norm, frozen=frozen, name="stem"), 3, stride=2, pad=1)


def _squeeze_excite(b: Builder, x: Map, reduction: int) -> Map:
    """Channels weighted by a small perceptron of their means."""
    with b.scope("excite"):
        mean = Map(b.node("GlobalAveragePool", x.tensor), x.channels, (1,) * len(x.size))
        y = conv(b, mean, x.channels // reduction, 1, norm="none", name="down")
        y = conv(b, y, x.channels, 1, norm="none", activation="Sigmoid", name="up")
        return x._replace(tensor=b.node("Mul", x.tensor, y.tensor))


def _block(
    b: Builder,
    x: Map,
    channels: int,
    *,
    bottleneck: bool,
    stride: int,
    groups: int,
    base_width: int,
    first_stride: bool,
    reduction: int,
    norm: Norm,
    frozen: bool,
) -> Map:
    out = 4 * channels if bottleneck else channels
    if bottleneck:
        width = channels * base_width // 64 * groups
        early = stride if first_stride else 1
        y = conv(b, x, width, 1, stride=early, norm=norm, frozen=frozen, name="conv1")
        y = conv(b, y, width, 3, stride=stride // early, groups=groups, norm=norm, frozen=frozen, name="conv2")
        y = conv(b, y, out, 1, norm=norm, activation="", frozen=frozen, name="conv3")
    else:
        y = conv(b, x, channels, 3, stride=stride, norm=norm, frozen=frozen, name="conv1")
        y = conv(b, y, out, 3, norm=norm, activation="", frozen=frozen, name="conv2")
    if reduction:
        y = _squeeze_excite(b, y, reduction)
    if stride > 1 or x.channels != out:
        x = conv(b, x, out, 1, stride=stride, norm=norm, activation="", frozen=frozen, name="shortcut")
    return relu(b, add(b, y, x))


def stages(
    b: Builder,
    x: Map,
    *,
    depth: int,
    groups: int = 1,
    base_width: int = 64,
    version: str = "1.5",
    reduction: int = 0,
    norm: Norm = "batch",
    strides: Sequence[int] = (1, 2, 2, 2),
    frozen: int = 0,
) -> list[Map]:
    """The result of each stage of blocks, as many as `strides`; the weights of the first `frozen` stages stay."""
    need("depth", depth, depth in BLOCKS, f"one of {', '.join(map(str, BLOCKS))}")
    need("version", version, version in ("1", "1.5"), "1 or 1.5")
    results = []
    for stage, (repeats, stride) in enumerate(zip(BLOCKS[depth], strides, strict=False)):
        for block in range(repeats):
            with b.scope(f"stage{stage + 1}.{block}"):
                x = _block(
                    b,
                    x,
                    64 * 2**stage,
                    bottleneck=depth >= 50,
                    stride=stride if block == 0 else 1,
                    groups=groups,
                    base_width=base_width,
                    first_stride=version == "1",
                    reduction=reduction,
                    norm=norm,
                    frozen=stage < frozen,
                )
        results.append(x)
    return results


def resnet(
    *,
    depth: int = 50,
    image: int = 224,
    classes: int = 1000,
    version: str = "1.5",
    groups: int = 1,
    base_width: int = 64,
    squeeze_excite: bool = False,
    seed: int | None = None,
    name: str | None = None,
) -> ModelProto:
    """Input "x" [batch, 3, image, image], output "y" [batch, classes].

    depth                18, 34, 50, 101 or 152
    version              "1" or "1.5": where a bottleneck has its stride
    groups, base_width   32 and 4 make a ResNeXt 32x4d; 1 and 128 a wide ResNet
    squeeze_excite       weight each block's channels (reduction 16)
    """
    b = Builder(name=name or f"resnet{depth}", seed=seed)
    x = stem(b, picture(b, 3, image, image))
    *_, x = stages(
        b,
        x,
        depth=depth,
        groups=groups,
        base_width=base_width,
        version=version,
        reduction=16 if squeeze_excite else 0,
    )
    return b.model(y=(scores(b, x, classes), (classes,)))


def resnet18(*, image: int = 224, classes: int = 1000, seed: int | None = 0) -> ModelProto:
    """A ResNet-18 with seeded weights: 11.7 million parameters at 1,000 classes."""
    return resnet(depth=18, image=image, classes=classes, seed=seed)

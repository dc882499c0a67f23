"""U-Nets, of pictures and of volumes.

Sources: Ronneberger et al. 2015 (arXiv 1505.04597), figure 1, here with padded convolutions and normalisation; Çiçek et
al. 2016 (arXiv 1606.06650), with the channels of the MLPerf training benchmark for kidney tumours (Isensee et al. 2019).
"""

from __future__ import annotations

from onnx import ModelProto, TensorProto

from .builder import Builder, need
from .convolution import Map, Norm, concat, conv, picture, pool

__all__ = ["unet", "unet3d"]


def _twice(b: Builder, x: Map, filters: int, *, stride: int = 1, norm: Norm = "batch") -> Map:
    return conv(b, conv(b, x, filters, 3, stride=stride, norm=norm, name="conv1"), filters, 3, norm=norm, name="conv2")


def _double(b: Builder, x: Map, filters: int) -> Map:
    """Twice as large along every axis."""
    dims = len(x.size)
    weight = b.weight((x.channels, filters, *(2,) * dims), fan_in=x.channels)
    tensor = b.node(
        "ConvTranspose",
        x.tensor,
        weight,
        b.weight((filters,), name="bias"),
        kernel_shape=[2] * dims,
        strides=[2] * dims,
    )
    return Map(tensor, filters, tuple(2 * n for n in x.size))


def _up(b: Builder, x: Map, skips: list[Map], norm: Norm) -> Map:
    for level, skip in reversed(list(enumerate(skips))):
        with b.scope(f"up{level}"):
            x = _twice(b, concat(b, skip, _double(b, x, skip.channels)), skip.channels, norm=norm)
    return x


def unet(
    *,
    image: int = 128,
    channels: int = 32,
    levels: int = 4,
    classes: int = 2,
    seed: int | None = 0,
    name: str = "unet",
) -> ModelProto:
    """Input "x" [batch, 3, image, image], output "y" [batch, classes, image, image]; `image` a multiple of 2^levels.

    64 channels are the paper's: 31 million parameters.
    """
    need("image", image, image % 2**levels == 0, f"a multiple of {2**levels}")
    b = Builder(name=name, seed=seed)
    x, skips = picture(b, 3, image, image), []
    for level in range(levels):
        with b.scope(f"down{level}"):
            x = _twice(b, x, channels * 2**level)
            skips.append(x)
            x = pool(b, x, 2)
    with b.scope("bottom"):
        x = _twice(b, x, channels * 2**levels)
    x = _up(b, x, skips, "batch")
    x = conv(b, x, classes, 1, norm="none", activation="", name="head")
    return b.model(y=(x.tensor, (classes, *x.size)))


def unet3d(
    *,
    size: int = 128,
    channels: tuple[int, ...] = (32, 64, 128, 256, 320, 320),
    inputs: int = 1,
    classes: int = 3,
    seed: int | None = None,
    name: str = "unet3d",
) -> ModelProto:
    """Volumes: input "x" [batch, inputs, size, size, size], output "y" [batch, classes, size, size, size].

    Instance normalisation, and convolutions of stride 2 on the way down. The outputs "y" go with "labels" [batch, size,
    size, size] into "loss", the cross-entropy (MLPerf adds a Dice score, which costs next to nothing beside the
    convolutions). 31 million parameters by default.
    """
    need("size", size, size % 2 ** (len(channels) - 1) == 0, f"a multiple of {2 ** (len(channels) - 1)}")
    b = Builder(name=name, seed=seed)
    x, skips = picture(b, inputs, size, size, size), []
    for level, filters in enumerate(channels):
        with b.scope(f"down{level}"):
            x = _twice(b, x, filters, stride=2 if level else 1, norm="instance")
            skips.append(x)
    x = _up(b, skips[-1], skips[:-1], "instance")
    x = conv(b, x, classes, 1, norm="none", activation="", name="head")
    labels = b.input("labels", size, size, size, dtype=TensorProto.INT64)
    return b.model(y=(x.tensor, (classes, *x.size)), loss=(b.cross_entropy(x.tensor, labels), None))

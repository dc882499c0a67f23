"""What convolutional networks share: a convolution that knows how many channels it gets, normalisation, pooling, an end.

A picture on its way through the network is a :class:`Map`: the tensor, its channels and its height and width, so that
no layer needs to be told what came before it.
"""

from __future__ import annotations

from math import prod
from typing import Any, Literal, NamedTuple

from .builder import Builder

__all__ = ["Map", "Norm", "add", "concat", "conv", "normalise", "picture", "pool", "relu", "scores"]

Norm = Literal["batch", "frozen", "instance", "none"]


class Map(NamedTuple):
    """A tensor [batch, channels, *size]."""

    tensor: str
    channels: int
    size: tuple[int, ...]


def picture(b: Builder, channels: int, *size: int, name: str = "x") -> Map:
    """The input: float32 [batch, channels, *size]."""
    return Map(b.input(name, channels, *size), channels, size)


def conv(
    b: Builder,
    x: Map,
    filters: int,
    size: int | tuple[int, ...],
    *,
    stride: int = 1,
    pad: int | tuple[int, ...] | None = None,
    dilation: int = 1,
    groups: int = 1,
    norm: Norm = "batch",
    activation: str = "Relu",
    bias: bool | None = None,
    frozen: bool = False,
    name: str = "conv",
    epsilon: float = 1e-5,
) -> Map:
    """A convolution, normalised, then `activation` ("" for none).

    pad     on each side; half the kernel unless given, which keeps the picture's size at stride 1
    norm    "frozen" is BatchNormalization whose four vectors stay as they are; "none" adds a bias unless told not to
    frozen  the weights stay as they are
    """
    dims = len(x.size)
    kernel = (size,) * dims if isinstance(size, int) else size
    pads = (
        tuple(dilation * (k - 1) // 2 for k in kernel)
        if pad is None
        else (pad,) * dims
        if isinstance(pad, int)
        else pad
    )
    with b.scope(name):
        fan_in = x.channels // groups * prod(kernel)
        operands = [b.weight((filters, x.channels // groups, *kernel), fan_in=fan_in, frozen=frozen)]
        if norm == "none" if bias is None else bias:
            operands.append(b.weight((filters,), name="bias", frozen=frozen))
        y = b.node(
            "Conv",
            x.tensor,
            *operands,
            kernel_shape=kernel,
            strides=[stride] * dims,
            pads=[*pads, *pads],
            dilations=[dilation] * dims,
            group=groups,
        )
        out = tuple(
            (n + 2 * p - dilation * (k - 1) - 1) // stride + 1 for n, p, k in zip(x.size, pads, kernel, strict=True)
        )
        result = normalise(b, Map(y, filters, out), norm, epsilon=epsilon)
        return result._replace(tensor=b.node(activation, result.tensor)) if activation else result


def normalise(b: Builder, x: Map, norm: Norm, *, epsilon: float = 1e-5) -> Map:
    """Normalised per channel, as `norm` says."""
    if norm == "none":
        return x
    with b.scope("norm"):
        frozen = norm == "frozen"
        parts = [b.weight((x.channels,), value=1.0, frozen=frozen), b.weight((x.channels,), name="bias", frozen=frozen)]
        if norm == "instance":
            return x._replace(tensor=b.node("InstanceNormalization", x.tensor, *parts, epsilon=epsilon))
        parts += [
            b.weight((x.channels,), name="running_mean", frozen=frozen),
            b.weight((x.channels,), value=1.0, name="running_var", frozen=frozen),
        ]
        return x._replace(tensor=b.node("BatchNormalization", x.tensor, *parts, epsilon=epsilon, momentum=0.9))


def relu(b: Builder, x: Map) -> Map:
    """The larger of x and 0."""
    return x._replace(tensor=b.node("Relu", x.tensor))


def add(b: Builder, x: Map, y: Map) -> Map:
    """The sum of two maps of one shape."""
    return x._replace(tensor=b.node("Add", x.tensor, y.tensor))


def concat(b: Builder, *maps: Map) -> Map:
    """Channels one behind the other."""
    tensor = b.node("Concat", *(m.tensor for m in maps), axis=1)
    return Map(tensor, sum(m.channels for m in maps), maps[0].size)


def pool(
    b: Builder, x: Map, size: int, *, stride: int | None = None, pad: int = 0, kind: str = "MaxPool", up: bool = False
) -> Map:
    """MaxPool or AveragePool over windows of `size`; `up` rounds the result's size up."""
    stride, dims = stride or size, len(x.size)
    extra: dict[str, Any] = {"count_include_pad": 1} if kind == "AveragePool" else {}
    tensor = b.node(
        kind,
        x.tensor,
        kernel_shape=[size] * dims,
        strides=[stride] * dims,
        pads=[pad] * (2 * dims),
        ceil_mode=int(up),
        **extra,
    )
    round_up = stride - 1 if up else 0
    out = tuple((n + 2 * pad - size + round_up) // stride + 1 for n in x.size)
    return x._replace(tensor=tensor, size=out)


def scores(b: Builder, x: Map, classes: int, *, dropout: float = 0.0) -> str:
    """The mean over all positions, then a dense layer: [batch, classes]."""
    flat = b.dropout(b.node("Flatten", b.node("GlobalAveragePool", x.tensor), axis=1), dropout)
    with b.scope("head"):
        return b.classify(flat, x.channels, classes)

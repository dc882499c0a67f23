"""Inception v3 (Szegedy et al. 2016, arXiv 1512.00567, table 1 and figures 5 to 7), with the widths that frameworks use."""

from __future__ import annotations

from onnx import ModelProto

from .builder import Builder, need
from .convolution import Map, concat, conv, picture, pool, scores

__all__ = ["inception_v3"]


def _average(b: Builder, x: Map) -> Map:
    return pool(b, x, 3, stride=1, pad=1, kind="AveragePool")


class _Branches:
    """Towers of convolutions from one map; each convolution is a name, filters, kernel and perhaps stride 2 unpadded."""

    def __init__(self, b: Builder) -> None:
        self.b, self.count = b, 0

    def conv(self, x: Map, filters: int, size: int | tuple[int, int], *, shrink: bool = False) -> Map:
        self.count += 1
        stride, pad = (2, 0) if shrink else (1, None)
        return conv(self.b, x, filters, size, stride=stride, pad=pad, epsilon=1e-3, name=f"conv{self.count}")


def _wide(b: Builder, x: Map, pooled: int) -> Map:
    """Figure 5: 1 x 1, 5 x 5, two 3 x 3, pooled; 35 x 35 positions."""
    t = _Branches(b)
    return concat(
        b,
        t.conv(x, 64, 1),
        t.conv(t.conv(x, 48, 1), 64, 5),
        t.conv(t.conv(t.conv(x, 64, 1), 96, 3), 96, 3),
        t.conv(_average(b, x), pooled, 1),
    )


def _long(b: Builder, x: Map, width: int) -> Map:
    """Figure 6: 7 x 7 as 1 x 7 and 7 x 1; 17 x 17 positions."""
    t = _Branches(b)
    once = t.conv(t.conv(t.conv(x, width, 1), width, (1, 7)), 192, (7, 1))
    twice = t.conv(t.conv(t.conv(x, width, 1), width, (7, 1)), width, (1, 7))
    twice = t.conv(t.conv(twice, width, (7, 1)), 192, (1, 7))
    return concat(b, t.conv(x, 192, 1), once, twice, t.conv(_average(b, x), 192, 1))


def _broad(b: Builder, x: Map) -> Map:
    """Figure 7: 3 x 3 as 1 x 3 beside 3 x 1; 8 x 8 positions."""
    t = _Branches(b)
    near, far = t.conv(x, 384, 1), t.conv(t.conv(x, 448, 1), 384, 3)
    return concat(
        b,
        t.conv(x, 320, 1),
        *(t.conv(near, 384, s) for s in ((1, 3), (3, 1))),
        *(t.conv(far, 384, s) for s in ((1, 3), (3, 1))),
        t.conv(_average(b, x), 192, 1),
    )


def inception_v3(
    *, image: int = 299, classes: int = 1000, dropout: float = 0.5, seed: int | None = None, name: str = "inception_v3"
) -> ModelProto:
    """Input "x" [batch, 3, image, image], output "y" [batch, classes]; 23.8 million parameters, without the side branch."""
    need("image", image, image >= 75, "at least 75")
    b = Builder(name=name, seed=seed)
    with b.scope("stem"):
        t = _Branches(b)
        x = t.conv(picture(b, 3, image, image), 32, 3, shrink=True)
        x = conv(b, x, 32, 3, pad=0, epsilon=1e-3, name="conv2")
        x = pool(b, conv(b, x, 64, 3, epsilon=1e-3, name="conv3"), 3, stride=2)
        x = conv(b, x, 80, 1, epsilon=1e-3, name="conv4")
        x = pool(b, conv(b, x, 192, 3, pad=0, epsilon=1e-3, name="conv5"), 3, stride=2)
    for block, pooled in enumerate((32, 64, 64)):
        with b.scope(f"wide{block}"):
            x = _wide(b, x, pooled)
    with b.scope("shrink1"):
        t = _Branches(b)
        deep = t.conv(t.conv(t.conv(x, 64, 1), 96, 3), 96, 3, shrink=True)
        x = concat(b, t.conv(x, 384, 3, shrink=True), deep, pool(b, x, 3, stride=2))
    for block, width in enumerate((128, 160, 160, 192)):
        with b.scope(f"long{block}"):
            x = _long(b, x, width)
    with b.scope("shrink2"):
        t = _Branches(b)
        deep = t.conv(t.conv(t.conv(x, 192, 1), 192, (1, 7)), 192, (7, 1))
        x = concat(
            b,
            t.conv(t.conv(x, 192, 1), 320, 3, shrink=True),
            t.conv(deep, 192, 3, shrink=True),
            pool(b, x, 3, stride=2),
        )
    for block in range(2):
        with b.scope(f"broad{block}"):
            x = _broad(b, x)
    return b.model(y=(scores(b, x, classes, dropout=dropout), (classes,)))

"""Convolutions: their shapes, the ways to compute them and their two gradients, and which is expected to be fastest.

============ ============================================================================ =========================
way          what is done                                                                 for
============ ============================================================================ =========================
xla          XLA's own convolution, channels last                                         everything
matmul       a product over channels                                                      windows of one, no pads
im2col       every window copied into a row (or, for the input's gradient, every row      one group
             added back to its window), one product
taps         one product for each place in the window, added up                           weights, one group
winograd2    tiles of 2 x 2 outputs by 16 products instead of 36 (Lavin, Gray 2016)       3 x 3, strides 1, one group
winograd4    tiles of 4 x 4 outputs by 36 products instead of 144; rounds ten times       3 x 3, strides 1, one group
             coarser than the others (1e-5 of the largest result in float32)
shifted      a sum of shifted inputs, each times its weight                               one input channel a group
rows         the same sum along whole rows of a picture at once                           weights of pictures, one input
                                                                                          channel a group
============ ============================================================================ =========================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

from ..onnxpp.graph import Operator
from ..onnxpp.hints import Direction
from ..onnxpp.windows import window_of
from .lowerings_family import Family

__all__ = ["CONVOLUTIONS", "Convolution", "convolution_of"]

# One operation for each place in a window: with more of them compiling takes longer than anything they save.
MOST_TAPS = 64
# Sums along whole rows are expected to be faster from so many filters on, in rows of so many elements; see `_expected`.
FILTERS_FOR_ROWS, WIDTH_FOR_ROWS = 32, 7
# Of what other convolutions promise: a product is rarely beaten where it is all there is to do.
GAIN_OF_PRODUCTS = 0.2


@dataclass(frozen=True, kw_only=True)
class Convolution:
    """The shape of a convolution; what is spatial has one entry per spatial dim.

    size, output   spatial dims of what goes in and of what comes out
    pads           (before, after); a window may also end before the last element
    """

    samples: int
    channels: int
    filters: int
    groups: int
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    output: tuple[int, ...]

    @cached_property
    def key(self) -> str:
        """Names this shape and no other.

        >>> Convolution(samples=8, channels=3, filters=64, groups=1, size=(224, 224), kernel=(7, 7), strides=(2, 2),
        ...     dilations=(1, 1), pads=((3, 3), (3, 3)), output=(112, 112)).key
        'conv 8x3x224x224 to 64x112x112 by 7x7/2x2 pad 3+3,3+3'
        """
        text = f"conv {_times((self.samples, self.channels, *self.size))} to {_times((self.filters, *self.output))}"
        text += f" by {_times(self.kernel)}/{_times(self.strides)}"
        text += f" pad {','.join(f'{a}+{z}' for a, z in self.pads)}" if any(map(any, self.pads)) else ""
        text += f" dilated {_times(self.dilations)}" if set(self.dilations) != {1} else ""
        return text + (f" in {self.groups} groups" if self.groups > 1 else "")

    @property
    def count(self) -> int:
        """Samples."""
        return self.samples

    @property
    def brief(self) -> str:
        """A shape for people, without what is usual.

        >>> Convolution(samples=8, channels=3, filters=64, groups=1, size=(224, 224), kernel=(7, 7), strides=(2, 2),
        ...     dilations=(1, 1), pads=((3, 3), (3, 3)), output=(112, 112)).brief
        '3x224x224 to 64, 7x7/2'
        """
        depthwise = self.groups == self.channels == self.filters > 1
        text = f"{_times((self.channels, *self.size))}" + (", depthwise " if depthwise else f" to {self.filters}, ")
        text += _times(self.kernel)
        for mark, values in (("/", self.strides), (" dilated ", self.dilations)):
            if set(values) != {1}:
                text += f"{mark}{values[0] if len(set(values)) == 1 else _times(values)}"
        return text + (f", {self.groups} groups" if self.groups > 1 and not depthwise else "")

    @property
    def flops(self) -> float:
        """Of each direction, a product and a sum being two."""
        return 2.0 * self.samples * prod(self.output) * self.filters * self.channels // self.groups * prod(self.kernel)


def _times(values: tuple[int, ...]) -> str:
    return "x".join(map(str, values))


def convolution_of(node: Operator, x_shape: Sequence[int], w_shape: Sequence[int]) -> Convolution:
    """The shape of a Conv node's work: x (N, C, *spatial), w (M, C/groups, *kernel).

    Raises:
        ModelError: the node's window does not fit its input.
    """
    window = window_of(node, x_shape[2:], node.attributes.get("kernel_shape") or w_shape[2:])
    return Convolution(
        samples=x_shape[0],
        channels=x_shape[1],
        filters=w_shape[0],
        groups=int(node.attributes.get("group", 1)),
        size=tuple(x_shape[2:]),
        kernel=window.kernel,
        strides=window.strides,
        dilations=window.dilations,
        pads=window.pads,
        output=window.output,
    )


def _read(node: Operator, operands: Sequence[Sequence[int]]) -> Convolution:
    return convolution_of(node, *operands[:2])


def _ways(conv: Convolution, direction: Direction) -> tuple[str, ...]:
    window, few = prod(conv.kernel), prod(conv.kernel) <= MOST_TAPS
    found = ["xla"]
    if conv.groups == 1:
        if window == 1 and not any(map(sum, conv.pads)):
            return ("xla", "matmul")
        if few:
            found += ["im2col", "taps"] if direction == "weight" else ["im2col"]
        if conv.kernel == (3, 3) and {*conv.strides, *conv.dilations} == {1}:
            found += ["winograd2", "winograd4"]
    elif conv.groups == conv.channels and few:
        found += ["shifted", "rows"] if direction == "weight" and len(conv.kernel) == 2 else ["shifted"]
    return tuple(found)


def _expected(conv: Convolution, direction: Direction, item_bytes: int) -> str:
    """In types of fewer than 4 bytes sums outside of products would round in that type, so there are none (`rows` adds up in
    float32, but nobody measured it there).

    The thresholds were measured on two cores of
    an AMD EPYC (Zen 4) with jaxlib 0.10.2 in float32, 16 samples of 3 x 3, milliseconds forward / weight's gradient (the
    input's is like the forward pass):

    ============================ ========== ========= ========= =========
    channels, picture                   xla    im2col winograd2 winograd4
    ============================ ========== ========= ========= =========
    64, 56 x 56                     37 / 40   36 / 50   19 / 30   17 / 19
    128, 28 x 28                    19 / 21   26 / 32   13 / 16   10 / 12
    256, 14 x 14                    20 / 22   26 / 28   14 / 19   13 / 27
    512, 7 x 7                      22 / 21   20 / 22   15 / 19   15 / 32
    256, 4 x 4                    1.7 / 3.5 1.8 / 2.1 2.0 / 2.4 3.8 / 7.7
    512, 2 x 2                    130 / 2.6 3.2 / 6.1 4.7 / 9.3   10 / 30
    64, 56 x 56, strides 2          21 / 19   16 / 24
    256, 14 x 14, strides 2         12 / 12   10 / 11
    ============================ ========== ========= ========= =========

    Of depthwise ones, milliseconds of the weight's gradient by sums of shifted pictures and of rows, 8 samples on one core
    (with XLA's older generator of kernels; the newer gives the same order) and 16 on two:

    ========================== =================== =====================
    channels, picture, window  one core: sh., rows two cores: sh., rows
    ========================== =================== =====================
    16, 112 x 112, 3 x 3                 8.1  6.7             7.1  12.4
    64, 112 x 112, 3 x 3, by 2          20.6  8.6            21.1  11.7
    72, 56 x 56, 3 x 3                   6.5  4.4             8.2   7.8
    120, 28 x 28, 5 x 5                  6.6  2.2             8.1   3.4
    480, 14 x 14, 3 x 3                  2.6  1.0             2.3   1.9
    960, 7 x 7, 5 x 5                    3.2  1.6             3.0   2.6
    ========================== =================== =====================
    """
    able = _ways(conv, direction)
    if "matmul" in able:
        return "matmul"
    if item_bytes < 4:
        return "xla"
    if "shifted" in able:
        long = conv.filters >= FILTERS_FOR_ROWS and conv.output[-1] >= WIDTH_FOR_ROWS
        return "rows" if "rows" in able and long else "shifted"
    points, window = prod(conv.output), prod(conv.kernel)
    if "im2col" in able and window * conv.channels <= 64 and direction != "input":
        return "im2col" if direction == "forward" else "xla"
    if "winograd4" in able and points >= 49:
        return "winograd2" if points < 784 else "winograd4"
    strided = max(conv.strides) > 1 and window <= 9 and (direction != "weight" or points <= 196)
    if "im2col" in able and (points <= 49 or strided):
        return "im2col"
    return "xla"


def _promise(conv: Convolution, direction: Direction) -> float:
    return conv.flops * (GAIN_OF_PRODUCTS if "matmul" in _ways(conv, direction) else 1.0)


CONVOLUTIONS = Family(
    name="conv",
    op_types=frozenset({"Conv"}),
    shape=Convolution,
    directions={"forward": None, "input": 0, "weight": 1},
    read=_read,
    ways=_ways,
    expected=_expected,
    promise=_promise,
)

"""Convolutions: their shapes, and the ways to compute them and their two gradients.

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
split        XLA's own of some groups at a time, as if they were one (:func:`bundles_of`) several channels a group
============ ============================================================================ =========================
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

from ..onnxpp.graph import Operator
from ..onnxpp.hints import Direction
from ..onnxpp.windows import window_of
from .lowerings_family import Family

__all__ = ["CONVOLUTIONS", "Convolution", "bundles_of", "convolution_of"]

# One operation for each place in a window: with more of them compiling takes longer than anything they save.
MOST_TAPS = 64
# Channels that are computed together where groups have fewer, and the most bundles: each is compiled by itself.
BUNDLE, MOST_BUNDLES = 32, 32
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

    @classmethod
    def from_key(cls, key: str) -> Convolution:
        """The shape of that key; ValueError where it is none."""
        found = _KEY.fullmatch(key)
        if not found:
            raise ValueError(f"{key!r} is no key of a convolution")
        (samples, channels, *size), (filters, *output), kernel, strides = map(_numbers, found.group(1, 2, 3, 4))
        pads = (
            tuple(tuple(map(int, pair.split("+"))) for pair in found[5].split(","))
            if found[5]
            else ((0, 0),) * len(kernel)
        )
        return cls(
            samples=samples,
            channels=channels,
            filters=filters,
            groups=int(found[7] or 1),
            size=tuple(size),
            kernel=kernel,
            strides=strides,
            dilations=_numbers(found[6]) if found[6] else (1,) * len(kernel),
            pads=pads,  # type: ignore[arg-type]
            output=tuple(output),
        )

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


_MANY = r"(\d+(?:x\d+)*)"
_KEY = re.compile(
    rf"conv {_MANY} to {_MANY} by {_MANY}/{_MANY}(?: pad ([\d+,]+))?(?: dilated {_MANY})?(?: in (\d+) groups)?"
)


def _times(values: tuple[int, ...]) -> str:
    return "x".join(map(str, values))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split("x")))


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
    elif conv.groups < conv.channels:
        # XLA's own takes hundreds of times as long for the weights; nobody should wait for that to be measured.
        return ("split",) if direction == "weight" else ("xla", "split")
    return tuple(found)


def bundles_of(conv: Convolution) -> tuple[int, Convolution]:
    """How many bundles of groups a convolution of several groups is computed in, and the convolution that each is.

    A bundle has the fewest groups with which it has :data:`BUNDLE` channels and filters, and there are no more bundles than
    :data:`MOST_BUNDLES`. Milliseconds of 8 samples on one core of an AMD EPYC (Zen 5) with jaxlib 0.10.2 in float32, forward
    and weight's gradient, by XLA's own and by bundles of so many channels:

    ==================================== ============ ============ ============ ============ ============
    channels, picture, groups                     xla    8 channels           16           32           64
    ==================================== ============ ============ ============ ============ ============
    128, 56 x 56, 32                     89 / 10,356    22 / 17       15 / 17      11 / 22      18 / 33
    256, 28 x 28, 32                     37 /  5,223   7.7 / 9.4     5.8 / 9.4    5.4 / 10     9.6 / 18
    512, 14 x 14, 32                                                 3.3 / 5.3    3.1 / 6.2    4.8 / 9.1
    1,024, 7 x 7, 32                    6.3 /  1,232                              1.6          2.4
    ==================================== ============ ============ ============ ============ ============
    """
    fewest = min(conv.channels, conv.filters) // conv.groups
    count = next(
        n
        for n in range(min(conv.groups, MOST_BUNDLES), 0, -1)
        if conv.groups % n == 0 and (fewest * (conv.groups // n) >= BUNDLE or n == 1)
    )
    return count, replace(conv, groups=1, channels=conv.channels // count, filters=conv.filters // count)


def _promise(conv: Convolution, direction: Direction) -> float:
    return conv.flops * (GAIN_OF_PRODUCTS if "matmul" in _ways(conv, direction) else 1.0)


CONVOLUTIONS = Family(
    name="conv",
    op_types=frozenset({"Conv"}),
    shape=Convolution,
    directions={"forward": None, "input": 0, "weight": 1},
    read=_read,
    ways=_ways,
    promise=_promise,
)

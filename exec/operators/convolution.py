"""Convolutions: which way each direction is computed, and the operators Conv and ConvTranspose by it.

ONNX keeps channels first; every way works with channels last, as processors like it, and leaves its result so (see
:mod:`.layout`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from ...models.cost.lowerings import Convolution, Direction, convolution_of, ways
from ...models.onnxpp.graph import Operator
from . import convolution_products as products
from .chosen import ways_of
from .convolution_depthwise import rows_weight, shifted_forward, shifted_input, shifted_weight
from .convolution_groups import split_forward, split_input, split_weight
from .convolution_winograd import winograd_forward, winograd_input, winograd_weight
from .convolution_xla import xla_forward, xla_input, xla_weight
from .layout import ChannelsLast, channels_first, channels_last, plus_channels
from .registry import lowers, text

__all__ = ["computed", "conv", "conv_transpose", "convolved_exactly"]

Way = Callable[[Array, Array, Convolution], Array]


_WAYS: dict[Direction, dict[str, Way]] = {
    "forward": {
        "xla": xla_forward,
        "matmul": products.matmul_forward,
        "im2col": products.im2col_forward,
        "winograd2": partial(winograd_forward, tile=2),
        "winograd4": partial(winograd_forward, tile=4),
        "shifted": shifted_forward,
        "split": split_forward,
    },
    "input": {
        "xla": xla_input,
        "matmul": products.matmul_input,
        "im2col": products.im2col_input,
        "winograd2": partial(winograd_input, tile=2),
        "winograd4": partial(winograd_input, tile=4),
        "shifted": shifted_input,
        "split": split_input,
    },
    "weight": {
        "xla": xla_weight,
        "matmul": products.matmul_weight,
        "im2col": products.im2col_weight,
        "taps": products.taps_weight,
        "winograd2": partial(winograd_weight, tile=2),
        "winograd4": partial(winograd_weight, tile=4),
        "shifted": shifted_weight,
        "rows": rows_weight,
        "split": split_weight,
    },
}


def computed(way: str, direction: Direction, conv: Convolution) -> Callable[[Array, Array], Array]:
    """A direction of a convolution, computed in a way: forward (x, w), input (gradient, w), weight (x, gradient), all as
    ONNX has them: x and gradient (N, channels, *spatial), w (M, C/groups, *kernel)."""
    function = _with_channels_last(way, direction, conv)

    def apply(a: Array, b: Array) -> Array:
        a = jnp.moveaxis(a, 1, -1)
        b = jnp.moveaxis(b, 1, -1) if direction == "weight" else b
        result = function(a, b)
        return result if direction == "weight" else jnp.moveaxis(result, -1, 1)

    return apply


def _with_channels_last(way: str, direction: Direction, conv: Convolution) -> Callable[[Array, Array], Array]:
    """As `computed`, where x and gradient have their channels last; weights are as ONNX has them."""
    function = _WAYS[direction][way]
    if direction == "weight":
        return lambda x, gradient: jnp.moveaxis(function(x, gradient, conv), -1, 1)
    return lambda a, w: function(a, jnp.moveaxis(w, 1, -1), conv)


@lowers("Conv", layout="any")
def conv(node: Operator, x: Any, w: Array, b: Array | None = None) -> Array | ChannelsLast:
    """x (N, C, *spatial), w (M, C/groups, *kernel), b (M,) -> (N, M, *output)."""
    w = jnp.asarray(channels_first(w))
    shape = convolution_of(node, x.shape, w.shape)
    y = _convolved(channels_last(x), w, shape, ways_of(node, shape, w.dtype))
    return _as_made(y if b is None else plus_channels(y, b))


def convolved_exactly(node: Operator, x: Array, w: Array) -> Array:
    """The convolution by sums of products alone: of whole numbers as floats the result is exact (Winograd's is not)."""
    shape = convolution_of(node, x.shape, w.shape)
    return computed("matmul" if "matmul" in ways(shape, "forward") else "xla", "forward", shape)(x, w)


def _as_made(y: Array) -> Array | ChannelsLast:
    """On a processor what is made with channels last stays so; on a GPU XLA chooses layouts."""
    return ChannelsLast(y) if jax.default_backend() == "cpu" else jnp.moveaxis(y, -1, 1)


# Its own gradient rule: each direction has its own way, and what is kept is the input alone (copied windows are k² times
# larger).
@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolved(x: Array, w: Array, conv: Convolution, chosen: tuple[str, str, str]) -> Array:
    """(N, *spatial, C) and (M, C/groups, *kernel) -> (N, *output, M)."""
    return _with_channels_last(chosen[0], "forward", conv)(x, w)


def _convolved_forward(
    x: Array, w: Array, conv: Convolution, chosen: tuple[str, str, str]
) -> tuple[Array, tuple[Array, Array]]:
    return _convolved(x, w, conv, chosen), (x, w)


def _convolved_backward(
    conv: Convolution, chosen: tuple[str, str, str], kept: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    x, w = kept
    into_x = _with_channels_last(chosen[1], "input", conv)(gradient, w)
    return into_x, _with_channels_last(chosen[2], "weight", conv)(x, gradient)


_convolved.defvjp(_convolved_forward, _convolved_backward)


@lowers("ConvTranspose", layout="any")
def conv_transpose(node: Operator, x: Any, w: Array, b: Array | None = None) -> Array | ChannelsLast:
    """x (N, C, *spatial), w (C, M/groups, *kernel), b (M,) -> (N, M, *output): the gradient of Conv as an operator."""
    w = jnp.asarray(channels_first(w))
    get, rank = node.attributes.get, x.ndim - 2
    groups = int(get("group", 1))
    kernel = tuple(get("kernel_shape") or w.shape[2:])
    strides, dilations = tuple(get("strides") or (1,) * rank), tuple(get("dilations") or (1,) * rank)
    extra = tuple(get("output_padding") or (0,) * rank)
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    pads = _transposed_pads(node, x.shape[2:], reach, strides, extra)
    size = [
        s * (n - 1) + r - a - z + e for s, n, r, (a, z), e in zip(strides, x.shape[2:], reach, pads, extra, strict=True)
    ]
    if min(map(min, pads)) >= 0 and all(e < s for e, s in zip(extra, strides, strict=True)) and min(size) > 0:
        shape = Convolution(
            samples=x.shape[0],
            channels=w.shape[1] * groups,
            filters=w.shape[0],
            groups=groups,
            size=tuple(size),
            kernel=kernel,
            strides=strides,
            dilations=dilations,
            pads=tuple(pads),
            output=tuple(x.shape[2:]),
        )
        y = _transposed(channels_last(x), w, shape, ways_of(node, shape, w.dtype))
        return _as_made(y if b is None else plus_channels(y, b))
    x = channels_first(x)
    # Gradient of a convolution: dilate the input by the stride and convolve with the flipped kernel.
    flipped = jnp.flip(w, axis=tuple(range(2, 2 + rank)))
    by_group = flipped.reshape(groups, w.shape[0] // groups, *w.shape[1:])
    kernel_oi = jnp.moveaxis(by_group, 2, 1).reshape(groups * w.shape[1], w.shape[0] // groups, *w.shape[2:])
    wanted = [(r - 1 - a, r - 1 - z + e) for r, (a, z), e in zip(reach, pads, extra, strict=True)]
    y = lax.conv_general_dilated(
        x,
        kernel_oi,
        window_strides=(1,) * rank,
        padding=[(max(a, 0), max(z, 0)) for a, z in wanted],
        lhs_dilation=strides,
        rhs_dilation=dilations,
        feature_group_count=groups,
    )
    # A negative pad leaves output away. Not said to XLA, whose convolution on CPU gets that wrong (jaxlib 0.10.2).
    inside = [slice(max(-a, 0), n - max(-z, 0)) for (a, z), n in zip(wanted, y.shape[2:], strict=True)]
    y = y[(slice(None), slice(None), *inside)]
    return y if b is None else y + b.reshape(-1, *(1,) * rank)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _transposed(x: Array, w: Array, conv: Convolution, chosen: tuple[str, str, str]) -> Array:
    """What the gradient x (N, *output, M) of `conv` makes of its input: (N, *size, C)."""
    return _with_channels_last(chosen[1], "input", conv)(x, w)


def _transposed_forward(
    x: Array, w: Array, conv: Convolution, chosen: tuple[str, str, str]
) -> tuple[Array, tuple[Array, Array]]:
    return _transposed(x, w, conv, chosen), (x, w)


def _transposed_backward(
    conv: Convolution, chosen: tuple[str, str, str], kept: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    x, w = kept
    into_x = _with_channels_last(chosen[0], "forward", conv)(gradient, w)
    return into_x, _with_channels_last(chosen[2], "weight", conv)(gradient, x)


_transposed.defvjp(_transposed_forward, _transposed_backward)


def _transposed_pads(
    node: Operator, spatial: tuple[int, ...], reach: list[int], strides: tuple[int, ...], extra: tuple[int, ...]
) -> list[tuple[int, int]]:
    """Pads of a ConvTranspose: given, or from `output_shape` or `auto_pad` by the ONNX specification's formulas."""
    get, rank = node.attributes.get, len(spatial)
    rule = text(node, "auto_pad", "NOTSET")
    full = [s * (n - 1) + e + r for s, n, e, r in zip(strides, spatial, extra, reach, strict=True)]
    wanted = list(get("output_shape") or ())[-rank:]
    if not wanted and rule in ("SAME_UPPER", "SAME_LOWER"):
        # Where windows leave gaps behind the last one, these are no output: pads are never negative here.
        wanted = [min(n * s, f) for n, s, f in zip(spatial, strides, full, strict=True)]
    if wanted:
        # Negative where the output reaches beyond the last window: zeros are added at the end.
        missing = [f - o for f, o in zip(full, wanted, strict=True)]
        small_first = rule == "SAME_UPPER"
        return [(m // 2, m - m // 2) if small_first else (m - m // 2, m // 2) for m in missing]
    flat = list(get("pads") or (0,) * 2 * rank) if rule == "NOTSET" else [0] * 2 * rank
    return [(flat[i], flat[i + rank]) for i in range(rank)]

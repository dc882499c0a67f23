"""Convolutions. ONNX keeps channels first; XLA on a CPU likes channels last, so every lowering computes there.

Between two convolutions the pairs of transposes meet, and XLA's layout assignment turns them into no-ops.
"""

from __future__ import annotations

from functools import partial
from math import prod
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array, lax

from ...models.onnxpp.graph import Operator
from .registry import lowers, text
from .window import Window, padded, taps, window_of

# One operation for each place in a window: with more of them compiling takes longer than anything they save.
MOST_TAPS = 64

__all__ = ["conv", "conv_transpose", "convolution_lowering"]


def convolution_lowering(
    window: Window, channels: int, groups: int, backend: str
) -> Literal["matmul", "im2col", "xla"]:
    """How to compute a convolution, from its shape alone; the thresholds are measured on one x86 core, float32.

    matmul   a window of one element is a matrix product over channels, which every backend does best
    im2col   copies every window into a row, then one matrix product: wins on CPU where XLA's convolution has too little
             to do per call, that is few input channels (rows of up to 64 elements) or small outputs (up to 7 x 7)
    xla      everything else, and every convolution on a GPU, where XLA calls the vendor's library
    """
    if prod(window.kernel) == 1 and groups == 1 and not any(map(sum, window.pads)):
        return "matmul"
    if backend != "cpu" or groups > 1:
        return "xla"
    if prod(window.kernel) * channels <= 64 or (prod(window.output) <= 49 and prod(window.kernel) <= MOST_TAPS):
        return "im2col"
    return "xla"


@lowers("Conv")
def conv(node: Operator, x: Array, w: Array, b: Array | None = None) -> Array:
    """x (N, C, *spatial), w (M, C/groups, *kernel), b (M,) -> (N, M, *output)."""
    window = window_of(node, x.shape[2:], node.attributes.get("kernel_shape") or w.shape[2:])
    y = _convolved(jnp.asarray(x), jnp.asarray(w), window, int(node.attributes.get("group", 1)))
    return y if b is None else y + b.reshape(-1, *(1,) * (x.ndim - 2))


# Its own gradient rule, because what is kept for it should be the input alone (copied windows are k² times larger), and
# because the gradient of the weights has a better lowering than the one XLA derives.
@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolved(x: Array, w: Array, window: Window, groups: int) -> Array:
    """(N, C, *spatial) and (M, C/groups, *kernel) -> (N, M, *output)."""
    last, kernel = jnp.moveaxis(x, 1, -1), jnp.moveaxis(w, (0, 1), (-1, -2))
    how = convolution_lowering(window, x.shape[1], groups, jax.default_backend())
    if how == "matmul":
        y = _matmul(last, kernel, window)
    elif how == "im2col":
        y = _im2col(last, kernel, window)
    else:
        y = _xla(last, kernel, window, groups)
    return jnp.moveaxis(y, -1, 1)


def _convolved_forward(x: Array, w: Array, window: Window, groups: int) -> tuple[Array, tuple[Array, Array]]:
    return _convolved(x, w, window, groups), (x, w)


def _convolved_backward(window: Window, groups: int, kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, w = kept
    backend = jax.default_backend()
    if convolution_lowering(window, x.shape[1], groups, backend) != "xla":
        return jax.vjp(lambda x, w: _convolved.fun(x, w, window, groups), x, w)[1](gradient)
    (into_x,) = jax.vjp(lambda x: _convolved.fun(x, w, window, groups), x)[1](gradient)
    # Measured on one core: up to 1.9 times faster than XLA's weight gradient up to 16 x 16, slower beyond.
    if backend == "cpu" and groups == 1 and prod(window.output) <= 256 and prod(window.kernel) <= MOST_TAPS:
        return into_x, _weight_gradient(x, gradient, window)
    (into_w,) = jax.vjp(lambda w: _convolved.fun(x, w, window, groups), w)[1](gradient)
    return into_x, into_w


_convolved.defvjp(_convolved_forward, _convolved_backward)


def _weight_gradient(x: Array, gradient: Array, window: Window) -> Array:
    """One matrix product per window position: what it saw, by the gradient of what came out."""
    rows = jnp.moveaxis(gradient, 1, -1).reshape(-1, gradient.shape[1])
    seen = taps(padded(jnp.moveaxis(x, 1, -1), window, 0), window)
    products = [rows.T @ tap.reshape(-1, tap.shape[-1]) for tap in seen]
    return jnp.stack(products, axis=-1).reshape(gradient.shape[1], x.shape[1], *window.kernel)


def _matmul(x: Array, kernel: Array, window: Window) -> Array:
    """(N, *spatial, C) and (*ones, C, M) -> (N, *output, M)."""
    seen = next(taps(x, window))
    return (seen.reshape(-1, seen.shape[-1]) @ kernel.reshape(kernel.shape[-2:])).reshape(
        *seen.shape[:-1], kernel.shape[-1]
    )


def _im2col(x: Array, kernel: Array, window: Window) -> Array:
    """(N, *spatial, C) and (*kernel, C, M) -> (N, *output, M)."""
    rows = jnp.concatenate(list(taps(padded(x, window, 0), window)), axis=-1)
    y = rows.reshape(-1, rows.shape[-1]) @ kernel.reshape(-1, kernel.shape[-1])
    return y.reshape(x.shape[0], *window.output, kernel.shape[-1])


def _xla(x: Array, kernel: Array, window: Window, groups: int) -> Array:
    """(N, *spatial, C) and (*kernel, C/groups, M) -> (N, *output, M)."""
    dims = "DHW"[-len(window.kernel) :] if len(window.kernel) <= 3 else "ABDEFGHW"[: len(window.kernel)]
    return lax.conv_general_dilated(
        x,
        kernel,
        window.strides,
        window.pads,
        rhs_dilation=window.dilations,
        dimension_numbers=(f"N{dims}C", f"{dims}IO", f"N{dims}C"),
        feature_group_count=groups,
    )


@lowers("ConvTranspose")
def conv_transpose(node: Operator, x: Array, w: Array, b: Array | None = None) -> Array:
    """x (N, C, *spatial), w (C, M/groups, *kernel), b (M,) -> (N, M, *output): the gradient of Conv as an operator."""
    get, rank = node.attributes.get, x.ndim - 2
    groups = int(get("group", 1))
    kernel = tuple(get("kernel_shape") or w.shape[2:])
    strides, dilations = tuple(get("strides") or (1,) * rank), tuple(get("dilations") or (1,) * rank)
    extra = tuple(get("output_padding") or (0,) * rank)
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    pads = _transposed_pads(node, x.shape[2:], reach, strides, extra)
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

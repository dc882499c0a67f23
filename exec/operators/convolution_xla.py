"""XLA's own convolution, channels last: x (N, *size, C), kernel (M, *kernel, C/groups), y (N, *output, M)."""

from __future__ import annotations

from dataclasses import replace

import jax
from jax import Array, lax

from ...models.cost.lowerings import Convolution
from .convolution_products import window_of_shape

__all__ = ["xla_forward", "xla_input", "xla_weight"]


def xla_forward(x: Array, kernel: Array, conv: Convolution) -> Array:
    """The convolution."""
    window = window_of_shape(conv)
    dims = "DHW"[-len(conv.kernel) :] if len(conv.kernel) <= 3 else "ABDEFGHW"[: len(conv.kernel)]
    return lax.conv_general_dilated(
        x,
        kernel,
        window.strides,
        window.pads,
        rhs_dilation=window.dilations,
        dimension_numbers=(f"N{dims}C", f"O{dims}I", f"N{dims}C"),
        feature_group_count=conv.groups,
    )


def xla_input(gradient: Array, kernel: Array, conv: Convolution) -> Array:
    """The gradient of x.

    Where a window lies in the padding as a whole, the gradient would be one with negative pads, which XLA gets wrong on a
    processor (jaxlib 0.10.2). There it is taken for x with its padding, which is then cut off.
    """
    reach = [(k - 1) * d + 1 for k, d in zip(conv.kernel, conv.dilations, strict=True)]
    if any(max(pads) >= r for pads, r in zip(conv.pads, reach, strict=True)):
        size = tuple(n + sum(pads) for n, pads in zip(conv.size, conv.pads, strict=True))
        whole = xla_input(gradient, kernel, replace(conv, size=size, pads=((0, 0),) * len(size)))
        inside = (slice(before, before + n) for n, (before, _) in zip(conv.size, conv.pads, strict=True))
        return whole[(slice(None), *inside)]
    x = jax.ShapeDtypeStruct((conv.samples, *conv.size, conv.channels), gradient.dtype)
    return jax.linear_transpose(lambda x: xla_forward(x, kernel, conv), x)(gradient)[0]


def xla_weight(x: Array, gradient: Array, conv: Convolution) -> Array:
    """The gradient of the kernel."""
    kernel = jax.ShapeDtypeStruct((conv.filters, *conv.kernel, conv.channels // conv.groups), gradient.dtype)
    return jax.linear_transpose(lambda kernel: xla_forward(x, kernel, conv), kernel)(gradient)[0]

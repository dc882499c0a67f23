"""Convolutions in groups of several channels, some groups at a time.

XLA's own computes groups one number after the other on a processor: a ResNeXt's takes ten times as long as it should, and its
weight's gradient, which multiplies all channels with all, hundreds of times. Here a bundle of neighbouring groups is a
convolution of one group whose kernel is zero between the groups. That multiplies by zeros, as many times as a bundle has
groups, but groups have fewer channels than a processor's vectors have places: of 8 channels, say, four groups take as long as one.
What is infinite or not a number in one group is not a number in its whole bundle.

Channels last: x (N, *size, C), kernel (M, *kernel, C/groups), y (N, *output, M).
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from ...models.cost.lowerings import Convolution
from ...models.cost.lowerings_convolution import bundles_of
from .convolution_xla import xla_forward, xla_input, xla_weight

__all__ = ["split_forward", "split_input", "split_weight"]


def split_forward(x: Array, kernel: Array, conv: Convolution) -> Array:
    """The convolution, bundle by bundle."""
    count, one = bundles_of(conv)
    parts = zip(jnp.split(x, count, -1), _bundled(kernel, conv, count), strict=True)
    return jnp.concatenate([xla_forward(a, w, one) for a, w in parts], -1)


def split_input(gradient: Array, kernel: Array, conv: Convolution) -> Array:
    """The gradient of x, bundle by bundle."""
    count, one = bundles_of(conv)
    parts = zip(jnp.split(gradient, count, -1), _bundled(kernel, conv, count), strict=True)
    return jnp.concatenate([xla_input(g, w, one) for g, w in parts], -1)


def split_weight(x: Array, gradient: Array, conv: Convolution) -> Array:
    """The gradient of the kernel: of every bundle all channels by all filters, of which those of the same group count."""
    count, one = bundles_of(conv)
    parts = zip(jnp.split(x, count, -1), jnp.split(gradient, count, -1), strict=True)
    return jnp.concatenate([_within_groups(xla_weight(a, g, one), conv, count) for a, g in parts])


def _bundled(kernel: Array, conv: Convolution, count: int) -> Array:
    """(M, *kernel, C/groups) -> (count, M/count, *kernel, C/count), zero where filter and channel are of different groups."""
    size = conv.groups // count
    by_group = kernel.reshape(count, size, conv.filters // conv.groups, *conv.kernel, 1, conv.channels // conv.groups)
    same = jnp.eye(size, dtype=kernel.dtype).reshape(1, size, 1, *(1,) * len(conv.kernel), size, 1)
    return (by_group * same).reshape(count, conv.filters // count, *conv.kernel, conv.channels // count)


def _within_groups(kernel: Array, conv: Convolution, count: int) -> Array:
    """Of a bundle's kernel (M/count, *kernel, C/count) what lies within its groups: (M/count, *kernel, C/groups)."""
    filters, channels = conv.filters // conv.groups, conv.channels // conv.groups
    return jnp.concatenate(
        [
            kernel[i * filters : (i + 1) * filters, ..., i * channels : (i + 1) * channels]
            for i in range(conv.groups // count)
        ]
    )

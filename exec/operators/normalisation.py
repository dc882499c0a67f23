"""Normalisations."""

from __future__ import annotations

from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from ...models.onnxpp.graph import Operator
from .layout import ChannelsLast, channel_sums, channels_first, channels_last, plus_channels
from .registry import Context, Value, lowers

__all__ = ["batch_normalization", "layer_normalization"]


@lowers("BatchNormalization", since=14, layout="any")
def batch_normalization(
    node: Operator, x: Any, scale: Array, bias: Array, mean: Array, variance: Array, *, context: Context
) -> Array | tuple[Array, ...]:
    """Normalises (N, C, ...) per channel; in training returns the running mean and variance too.

    Training uses the mean and (population) variance of this microbatch on this replica, and returns
    ``momentum * running + (1 - momentum) * current``. A node trains where it says so itself (`training_mode`) and the
    run trains. Statistics are computed in float32 at least.
    """
    says_so = bool(node.attributes.get("training_mode", 0))
    return _batch_normalised(node, x, scale, bias, mean, variance, trains=says_so and context.training is not False)


@lowers("BatchNormalization", layout="any")
def batch_normalization_by_outputs(
    node: Operator, x: Any, scale: Array, bias: Array, mean: Array, variance: Array, *, context: Context
) -> Array | tuple[Array, ...]:
    """Before opset 14 a node trains where it has more than one output; the fourth and fifth are the batch's own mean
    and variance. Before opset 9 `spatial` may be 0: every element of a sample then has statistics of its own."""
    says_so = sum(map(bool, node.outputs)) > 1 and not node.attributes.get("is_test", 0)
    return _batch_normalised(node, x, scale, bias, mean, variance, trains=says_so and context.training is not False)


def _batch_normalised(
    node: Operator, x: Any, scale: Array, bias: Array, mean: Array, variance: Array, *, trains: bool
) -> Any:
    by_channel = bool(node.attributes.get("spatial", 1)) and x.ndim > 1
    # Else every element of a sample is a channel.
    last = channels_last(x) if by_channel else channels_first(x).reshape(x.shape[0], -1)
    wide, epsilon, wanted = _wide(last), node.attributes.get("epsilon", 1e-5), len(node.outputs)
    factor, summand, known_mean, known_variance = (
        v.reshape(-1).astype(wide.dtype) for v in (scale, bias, mean, variance)
    )
    statistics: tuple[Array, ...] = (mean, variance, mean, variance)
    if trains:
        y, current, spread = _normalised_in_training(wide, factor, summand, epsilon)
        statistics = _statistics(node, mean, variance, current, spread)
    else:
        y = _normalised(wide, known_mean, known_variance, epsilon) * factor + summand
    y = y.astype(x.dtype)
    result: Any = ChannelsLast(y) if by_channel else y.reshape(x.shape)
    if not isinstance(x, ChannelsLast):
        result = channels_first(result)
    return (result, *statistics)[:wanted] if wanted > 1 else result


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _normalised_in_training(x: Array, scale: Array, bias: Array, epsilon: float) -> tuple[Array, Array, Array]:
    """x (N, ..., C) by the mean and variance of its channels: (y, mean, variance); no gradient through the last two."""
    y, mean, variance, _ = _by_own_statistics(x, scale, bias, epsilon)
    return y, mean, variance


def _by_own_statistics(x: Array, scale: Array, bias: Array, epsilon: float) -> tuple[Array, Array, Array, Array]:
    count = x.size // x.shape[-1]
    mean = channel_sums(x) / count
    variance = channel_sums(jnp.square(x - mean)) / count
    inverse = lax.rsqrt(variance + jnp.asarray(epsilon, x.dtype))
    return (x - mean) * (inverse * scale) + bias, mean, variance, inverse


def _normalised_forward(x: Array, scale: Array, bias: Array, epsilon: float) -> tuple[Any, Any]:
    y, mean, variance, inverse = _by_own_statistics(x, scale, bias, epsilon)
    return (y, mean, variance), (x, scale, mean, inverse)


def _normalised_backward(epsilon: float, kept: Any, gradients: Any) -> tuple[Array, Array, Array]:
    """Ioffe and Szegedy 2015 (arXiv 1502.03167), section 3; what was normalised is computed again."""
    x, scale, mean, inverse = kept
    gradient = lax.optimization_barrier(gradients[0])
    count = x.size // x.shape[-1]
    into_bias = channel_sums(gradient)
    into_scale = channel_sums(gradient * (x - mean)) * inverse
    along = into_scale * inverse / count
    into_x = (gradient - into_bias / count - (x - mean) * along) * (scale * inverse)
    return into_x, into_scale, into_bias


_normalised_in_training.defvjp(_normalised_forward, _normalised_backward)


def _statistics(node: Operator, mean: Array, variance: Array, current: Array, spread: Array) -> tuple[Array, ...]:
    """(new running mean and variance, the batch's own); no gradient flows through them."""
    momentum = node.attributes.get("momentum", 0.9)
    current, spread = (lax.stop_gradient(v).reshape(mean.shape) for v in (current, spread))
    kept_mean = momentum * mean + (1 - momentum) * current
    kept_variance = momentum * variance + (1 - momentum) * spread
    return kept_mean.astype(mean.dtype), kept_variance.astype(variance.dtype), current, spread


def _normalised(x: Array, mean: Array, variance: Array, epsilon: float) -> Array:
    return (x - mean) * lax.rsqrt(variance + jnp.asarray(epsilon, variance.dtype))


@lowers("LayerNormalization", since=17)
def layer_normalization(node: Operator, x: Array, scale: Array, bias: Array | None = None) -> tuple[Array, ...]:
    """(y, mean, 1 / deviation) over the axes from `axis` on; statistics in the `stash_type`, at least float32."""
    axis = int(node.attributes.get("axis", -1)) % x.ndim
    axes = tuple(range(axis, x.ndim))
    wide = _wide(x)
    epsilon = float(node.attributes.get("epsilon", 1e-5))
    if sum(map(bool, node.outputs)) == 1 and wide.dtype == x.dtype:
        rows = wide.reshape(*x.shape[:axis], prod(x.shape[axis:]))
        factor, summand = (
            jnp.broadcast_to(v, x.shape[axis:]).reshape(-1).astype(x.dtype) if v is not None else None
            for v in (scale, bias)
        )
        y = _normalised_by_row(rows, factor, epsilon)
        y = y if bias is None else plus_channels(y, summand)
        return (y.reshape(x.shape),)
    mean = jnp.mean(wide, axis=axes, keepdims=True)
    centred = wide - mean
    inverse = lax.rsqrt(jnp.mean(jnp.square(centred), axis=axes, keepdims=True) + epsilon)
    y = (centred * inverse).astype(x.dtype) * scale
    return (y if bias is None else y + bias), mean, inverse


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _normalised_by_row(x: Array, scale: Array, epsilon: float) -> Array:
    """(..., C) by the mean and variance of each row, times scale (C,)."""
    centred, inverse = _centred(x, epsilon)
    return centred * inverse * scale


def _centred(x: Array, epsilon: float) -> tuple[Array, Array]:
    """x less the mean of its rows, and one over their deviation."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    return centred, lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + jnp.asarray(epsilon, x.dtype))


def _by_row_forward(x: Array, scale: Array, epsilon: float) -> tuple[Array, tuple[Array, Array]]:
    return _normalised_by_row(x, scale, epsilon), (x, scale)


def _by_row_backward(epsilon: float, kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    """Ba, Kiros and Hinton 2016 (arXiv 1607.06450); what was normalised is computed again, which costs less than to keep it."""
    x, scale = kept
    centred, inverse = _centred(x, epsilon)
    normal, along = centred * inverse, gradient * scale
    into_x = inverse * (
        along - jnp.mean(along, axis=-1, keepdims=True) - normal * jnp.mean(along * normal, axis=-1, keepdims=True)
    )
    return into_x, channel_sums(gradient * normal)


_normalised_by_row.defvjp(_by_row_forward, _by_row_backward)


@lowers("RMSNormalization", since=23)
def rms_normalization(node: Operator, x: Array, scale: Array) -> Array:
    """x over its root mean square along the axes from `axis` on, times scale."""
    axes = tuple(range(int(node.attributes.get("axis", -1)) % x.ndim, x.ndim))
    wide = _wide(x)
    square = jnp.mean(jnp.square(wide), axis=axes, keepdims=True)
    return (wide * lax.rsqrt(square + node.attributes.get("epsilon", 1e-5))).astype(x.dtype) * scale


@lowers("InstanceNormalization")
def instance_normalization(node: Operator, x: Array, scale: Array, bias: Array) -> Array:
    """Normalises every channel of every sample over its spatial dims."""
    axes, shape = tuple(range(2, x.ndim)), (1, -1, *(1,) * (x.ndim - 2))
    wide = _wide(x)
    mean = jnp.mean(wide, axis=axes, keepdims=True)
    spread = jnp.mean(jnp.square(wide - mean), axis=axes, keepdims=True)
    y = _normalised(wide, mean, spread, node.attributes.get("epsilon", 1e-5)).astype(x.dtype)
    return y * scale.reshape(shape) + bias.reshape(shape)


@lowers("GroupNormalization", since=21)
def group_normalization(node: Operator, x: Array, scale: Array, bias: Array) -> Array:
    """Normalises groups of channels of every sample."""
    groups = int(node.attributes["num_groups"])
    split = _wide(x).reshape(x.shape[0], groups, prod(x.shape[1:]) // groups)
    mean = jnp.mean(split, axis=-1, keepdims=True)
    spread = jnp.mean(jnp.square(split - mean), axis=-1, keepdims=True)
    y = _normalised(split, mean, spread, node.attributes.get("epsilon", 1e-5)).reshape(x.shape).astype(x.dtype)
    shape = (1, -1, *(1,) * (x.ndim - 2))
    return y * scale.reshape(shape) + bias.reshape(shape)


@lowers("LRN")
def local_response_normalization(node: Operator, x: Array) -> Array:
    """x / (bias + alpha / size * sum of squares over `size` neighbouring channels) ** beta."""
    get = node.attributes.get
    size = int(node.attributes["size"])
    before, after = (size - 1) // 2, size - 1 - (size - 1) // 2
    wide = _wide(x)
    squares = jnp.pad(jnp.square(wide), [(0, 0), (before, after)] + [(0, 0)] * (x.ndim - 2))
    total = sum(squares[:, i : i + x.shape[1]] for i in range(size))
    return (wide / (get("bias", 1.0) + get("alpha", 1e-4) / size * total) ** get("beta", 0.75)).astype(x.dtype)


@lowers("LpNormalization")
def lp_normalization(node: Operator, x: Array) -> Array:
    """x over its p-norm along `axis`, 0 where the norm is."""
    axis, wide = int(node.attributes.get("axis", -1)), _wide(x)
    if int(node.attributes.get("p", 2)) == 1:
        norm = jnp.sum(jnp.abs(wide), axis=axis, keepdims=True)
    else:
        norm = _root(jnp.sum(jnp.square(wide), axis=axis, keepdims=True))
    return jnp.where(norm == 0, 0, wide / jnp.where(norm == 0, 1, norm)).astype(x.dtype)


@lowers("MeanVarianceNormalization", since=9)
def mean_variance_normalization(node: Operator, x: Array) -> Array:
    """(x - mean) / (deviation + 1e-9) over `axes`."""
    axes = tuple(node.attributes.get("axes") or (0, 2, 3))
    wide = _wide(x)
    centred = wide - jnp.mean(wide, axis=axes, keepdims=True)
    return (centred / (_root(jnp.mean(jnp.square(centred), axis=axes, keepdims=True)) + 1e-9)).astype(x.dtype)


def _wide(x: Value) -> Array:
    """x in float32 at least: squares of float16 overflow from 256 on, and 1e-9 is 0 in it."""
    return jnp.asarray(x, jnp.promote_types(x.dtype, jnp.float32))


def _root(square: Array) -> Array:
    """The square root, with a gradient of 0 where it is 0 (by derivation it would be infinite)."""
    return jnp.where(square == 0, 0, jnp.sqrt(jnp.where(square == 0, 1, square)))

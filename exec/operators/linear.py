"""The product of a linear layer, y = x w, and its gradients: the ways of :mod:`hpdlf.models.cost.lowerings_product`.

The weight's gradient xᵀ g is a sum over rows (samples, tokens, positions). XLA's matrix product on a processor takes its left
operand by rows; one that is to be transposed it gathers element by element, at up to half of the speed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

from ...models.cost.lowerings import Direction, Linear
from ...models.cost.lowerings_product import over_rows_way

__all__ = ["computed", "linear", "over_rows"]

# Barriers keep XLA from making transpositions a part of what comes before or after, which then runs at their pace.
_barrier = lax.optimization_barrier


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def linear(x: Array, w: Array, transposed: bool, chosen: tuple[str, str, str]) -> Array:
    """x (..., K) by w (K, M), or (M, K) where it lies transposed -> (..., M).

    chosen   the ways of the forward pass, the input's gradient and the weight's
    """
    return _by_weight(x, w, transposed, chosen[0])


def _forward(x: Array, w: Array, transposed: bool, chosen: tuple[str, str, str]) -> tuple[Array, tuple[Array, Array]]:
    return linear(x, w, transposed, chosen), (x, w)


def _backward(
    transposed: bool, chosen: tuple[str, str, str], kept: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    x, w = kept
    into_x = _by_weight(gradient, w, not transposed, chosen[1])
    return into_x, _into_weight(x, gradient, transposed, chosen[2])


linear.defvjp(_forward, _backward)


def _by_weight(x: Array, w: Array, transposed: bool, way: str) -> Array:
    """x (..., K) by w (K, M), or (M, K) where it lies `transposed`."""
    if way == "xla":
        return jnp.matmul(x, w.T if transposed else w)
    rows = x.reshape(-1, x.shape[-1])
    y = _barrier((w if transposed else w.T) @ rows.T).T
    return y.reshape(*x.shape[:-1], y.shape[-1])


def _into_weight(x: Array, gradient: Array, transposed: bool, way: str) -> Array:
    """The gradient of the weight, which lies as it does."""
    rows, arrived = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
    return _WAYS[way](arrived, rows) if transposed else _WAYS[way](rows, arrived)


def computed(way: str, direction: Direction, shape: Linear) -> Callable[[Array, Array], Array]:
    """A direction, computed in a way: forward (x, w), input (gradient, w), weight (x, gradient)."""
    if direction == "weight":
        return lambda x, gradient: _into_weight(x, gradient, shape.transposed, way)
    return lambda x, w: _by_weight(x, w, shape.transposed == (direction == "forward"), way)


# --- sums over rows ---------------------------------------------------------------------------------------------------


def over_rows(a: Array, b: Array) -> Array:
    """aᵀ b of a (rows, K) and b (rows, M), in the way of :func:`over_rows_way`: (K, M)."""
    way = over_rows_way(len(a), a.shape[1], b.shape[1]) if jax.default_backend() == "cpu" else "xla"
    return _WAYS[way](a, b)


def _xla(a: Array, b: Array) -> Array:
    y = a.T @ b
    return _barrier(y) if jax.default_backend() == "cpu" else y


def _turned(a: Array, b: Array) -> Array:
    return _barrier(_barrier(a.T) @ b)


def _swapped(a: Array, b: Array) -> Array:
    return _barrier(_barrier(b.T @ a).T)


def _swapturned(a: Array, b: Array) -> Array:
    return _barrier(_turned(b, a).T)


_WAYS = {"xla": _xla, "turned": _turned, "swapped": _swapped, "swapturned": _swapturned}

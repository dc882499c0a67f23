"""Batches of matrix products, y = a b, and their gradients: the ways of :mod:`hpdlf.models.cost.lowerings_product`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

from ...models.cost.lowerings import Direction

__all__ = ["computed", "products"]

# Without barriers XLA gives the product its operands as they lie, and transposes what it makes of them.
_barrier = lax.optimization_barrier


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def products(a: Array, b: Array, chosen: tuple[str, str, str]) -> Array:
    """a (..., M, K) by b (..., K, N), the same dims before -> (..., M, N).

    chosen   the ways of the forward pass, the left operand's gradient and the right one's
    """
    return _FORMS["forward"][chosen[0]](a, b)


def _forward(a: Array, b: Array, chosen: tuple[str, str, str]) -> tuple[Array, tuple[Array, Array]]:
    return products(a, b, chosen), (a, b)


def _backward(chosen: tuple[str, str, str], kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    a, b = kept
    return _FORMS["left"][chosen[1]](gradient, b), _FORMS["right"][chosen[2]](a, gradient)


products.defvjp(_forward, _backward)


def computed(way: str, direction: Direction) -> Callable[[Array, Array], Array]:
    """A direction, computed in a way: forward (a, b), left (gradient, b), right (a, gradient)."""
    return _FORMS[direction][way]


def _dot(a: Array, b: Array, over_a: int, over_b: int) -> Array:
    """The sum over the last dim (-1) or the one before (-2) of both, batch by batch."""
    before = tuple(range(a.ndim - 2))
    return lax.dot_general(a, b, (((a.ndim + over_a,), (b.ndim + over_b,)), (before, before)))


def _turned(a: Array) -> Array:
    """A copy with rows as columns."""
    return _barrier(_as_columns(a))


def _as_columns(a: Array) -> Array:
    return jnp.swapaxes(a, -1, -2)


_FORMS: dict[Direction, dict[str, Callable[[Array, Array], Array]]] = {
    "forward": {
        "xla": lambda a, b: _dot(a, b, -1, -2),
        "turned": lambda a, b: _dot(_turned(a), b, -2, -2),
    },
    "left": {
        "xla": lambda gradient, b: _dot(gradient, b, -1, -1),
        "turned": lambda gradient, b: _dot(_turned(gradient), b, -2, -1),
    },
    "right": {
        "xla": lambda a, gradient: _dot(a, gradient, -2, -2),
        "turned": lambda a, gradient: _dot(_turned(a), gradient, -1, -2),
        "swapped": lambda a, gradient: _as_columns(_barrier(_dot(gradient, a, -2, -2))),
        "swapturned": lambda a, gradient: _as_columns(_barrier(_dot(_turned(gradient), a, -1, -2))),
    },
}

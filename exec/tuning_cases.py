"""What is timed: a direction of a shape as a function of two operands, which come and go as between two operators.

One function for each family of :mod:`hpdlf.models.cost.lowerings`, by its name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array

from ..models.cost.lowerings import Convolution, Direction, Linear, ProductBatch, Shape, family_of
from .operators import convolution, linear, product_batch

__all__ = ["case"]

Case = tuple[Callable[[Array, Array], Array], tuple[int, ...], tuple[int, ...]]
"""A function, and the dims of its two operands."""


def case(shape: Shape, direction: Direction, way: str) -> Case:
    """A direction of `shape`, computed in `way`."""
    return _CASES[family_of(shape).name](shape, direction, way)


def _convolution(conv: Convolution, direction: Direction, way: str) -> Case:
    """Pictures have channels last, as between two layers, so that copies which only a change of layout costs do not count;
    weights are as ONNX has them (M, C/groups, *kernel)."""
    function = convolution.computed(way, direction, conv)

    def apply(a: Array, b: Array) -> Array:
        a = jnp.moveaxis(a, -1, 1)
        if direction == "weight":
            return function(a, jnp.moveaxis(b, -1, 1))
        return jnp.moveaxis(function(a, b), 1, -1)

    x = (conv.samples, *conv.size, conv.channels)
    w = (conv.filters, conv.channels // conv.groups, *conv.kernel)
    y = (conv.samples, *conv.output, conv.filters)
    return apply, *_of_three(direction, x, w, y)


def _linear(shape: Linear, direction: Direction, way: str) -> Case:
    x, y = (shape.rows, shape.wide), (shape.rows, shape.result)
    w = (shape.result, shape.wide) if shape.transposed else (shape.wide, shape.result)
    return linear.computed(way, direction, shape), *_of_three(direction, x, w, y)


def _products(shape: ProductBatch, direction: Direction, way: str) -> Case:
    a, b = (shape.batch, shape.rows, shape.inner), (shape.batch, shape.inner, shape.columns)
    y = (shape.batch, shape.rows, shape.columns)
    return product_batch.computed(way, direction), *_of_three(direction, a, b, y)


def _of_three(direction: Direction, a: Any, b: Any, y: Any) -> tuple[Any, Any]:
    """What a direction of y = f(a, b) reads: the result of both, or the gradient (as y) in place of the operand it is of."""
    return (a, b) if direction == "forward" else (y, b) if direction in ("input", "left") else (a, y)


_CASES: dict[str, Callable[[Any, Direction, str], Case]] = {
    "conv": _convolution,
    "linear": _linear,
    "products": _products,
}

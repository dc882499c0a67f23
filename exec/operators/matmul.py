"""Matrix products."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from ...models.cost.lowerings_product import batch_of, linear_shape
from ...models.onnxpp.graph import Operator
from .chosen import ways_of
from .layout import plus_channels
from .linear import linear
from .product_batch import products
from .registry import lowers, text

__all__ = ["einsum", "gemm", "matmul"]


@lowers("MatMul")
def matmul(node: Operator, a: Array, b: Array) -> Array:
    """(..., M, K) by (..., K, N), broadcast as NumPy does."""
    return _product(node, jnp.asarray(a), jnp.asarray(b))


@lowers("Gemm")
def gemm(node: Operator, a: Array, b: Array, c: Array | None = None) -> Array:
    """alpha * a @ b + beta * c, either operand transposed by attribute; c broadcasts to (M, N)."""
    get = node.attributes.get
    a, b = jnp.asarray(a), jnp.asarray(b)
    # XLA's product contracts the right axes; it computes no transposition.
    y = _product(node, a.T if get("transA", 0) else a, b, transposed=bool(get("transB", 0)))
    y = _scaled(y, get("alpha", 1.0))
    if c is None:
        return y
    summand = _scaled(jnp.asarray(c), get("beta", 1.0))
    return plus_channels(y, summand) if summand.shape == y.shape[1:] else y + summand


def _product(node: Operator, a: Array, b: Array, *, transposed: bool = False) -> Array:
    if a.dtype == b.dtype and jnp.issubdtype(a.dtype, jnp.floating):
        shape = linear_shape(a.shape, b.shape, transposed=transposed)
        if shape is not None:
            return linear(a, b, transposed, ways_of(node, shape, a.dtype))
        batch = batch_of(node, (a.shape, b.shape))
        if batch is not None:
            return products(a, b, ways_of(node, batch, a.dtype))
    return jnp.matmul(a, b.T if transposed else b)


def _scaled(x: Array, factor: float) -> Array:
    """factor * x in the dtype of x."""
    return x if factor == 1 else (x * jnp.asarray(factor, x.dtype))


@lowers("Einsum")
def einsum(node: Operator, *operands: Array) -> Array:
    """The `equation` attribute over its operands."""
    return jnp.einsum(text(node, "equation", ""), *operands)

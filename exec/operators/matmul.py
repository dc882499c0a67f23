"""Matrix products."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from ...models.onnxpp.graph import Operator
from .layout import plus_channels
from .linear import linear
from .registry import lowers, text

__all__ = ["einsum", "gemm", "matmul"]


@lowers("MatMul")
def matmul(node: Operator, a: Array, b: Array) -> Array:
    """(..., M, K) by (..., K, N), broadcast as NumPy does."""
    return _product(jnp.asarray(a), jnp.asarray(b))


@lowers("Gemm")
def gemm(node: Operator, a: Array, b: Array, c: Array | None = None) -> Array:
    """alpha * a @ b + beta * c, either operand transposed by attribute; c broadcasts to (M, N)."""
    get = node.attributes.get
    a, b = jnp.asarray(a), jnp.asarray(b)
    # XLA's product contracts the right axes; it computes no transposition.
    y = _product(a.T if get("transA", 0) else a, b, transposed=bool(get("transB", 0)))
    y = _scaled(y, get("alpha", 1.0))
    if c is None:
        return y
    summand = _scaled(jnp.asarray(c), get("beta", 1.0))
    return plus_channels(y, summand) if summand.shape == y.shape[1:] else y + summand


def _product(a: Array, b: Array, *, transposed: bool = False) -> Array:
    if a.ndim >= 2 and b.ndim == 2 and a.dtype == b.dtype and jnp.issubdtype(a.dtype, jnp.floating):
        return linear(a, b, transposed)
    return jnp.matmul(a, b.T if transposed else b)


def _scaled(x: Array, factor: float) -> Array:
    """factor * x in the dtype of x."""
    return x if factor == 1 else (x * jnp.asarray(factor, x.dtype))


@lowers("Einsum")
def einsum(node: Operator, *operands: Array) -> Array:
    """The `equation` attribute over its operands."""
    return jnp.einsum(text(node, "equation", ""), *operands)

"""Attention beyond what the standard's function bodies say."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from ...models.onnxpp.graph import Operator
from .casting import element_type
from .interpret import outer_values, run_body
from .registry import Context, lowers

__all__ = ["flex_attention"]


@lowers("FlexAttention", domain="ai.onnx.preview")
def flex_attention(node: Operator, q: Array, k: Array, v: Array, *captured: Array, context: Context) -> Array:
    """softmax(q kᵀ · scale) v, with graphs that change the scores and the probabilities.

    q (N, H, L, D), k (N, G, S, D), v (N, G, S, E) -> (N, H, L, E); H a multiple of G: each group of heads shares one k
    and v. Scores and probabilities have `softmax_precision`, by default float32, of doubles float64.
    """
    _, outer = outer_values(node, (q, k, v, *captured))
    get = node.attributes.get
    default = jnp.promote_types(q.dtype, jnp.float32)
    wide = element_type(node, int(get("softmax_precision"))) if get("softmax_precision") else default
    scale = get("scale", q.shape[-1] ** -0.5)
    samples, heads, rows, depth = q.shape
    groups = k.shape[1]
    by_group = q.reshape(samples, groups, heads // groups, rows, depth)
    scores = jnp.einsum("nghld,ngsd->nghls", by_group, k, preferred_element_type=wide) * jnp.asarray(scale, wide)
    scores = scores.reshape(samples, heads, rows, k.shape[2])
    if get("score_mod") is not None:
        (scores,) = run_body(get("score_mod"), (scores,), outer, context)
    probabilities = jax.nn.softmax(scores, axis=-1)
    if get("prob_mod") is not None:
        (probabilities,) = run_body(get("prob_mod"), (probabilities,), outer, context)
    weights = probabilities.reshape(samples, groups, heads // groups, rows, k.shape[2]).astype(v.dtype)
    return jnp.einsum("nghls,ngse->nghle", weights, v).reshape(samples, heads, rows, v.shape[-1])

"""Attention and rotary embeddings: one compact lowering in place of the standard's function bodies of 40 operators."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from ...models.onnxpp.graph import Operator
from .casting import element_type_of
from .interpret import outer_values, run_body
from .registry import Context, Value, lowers
from .softmax import row_maximum, softmax

__all__ = ["attention", "flex_attention", "rotary_embedding"]


@lowers("FlexAttention", domain="ai.onnx.preview")
def flex_attention(node: Operator, q: Array, k: Array, v: Array, *captured: Array, context: Context) -> Array:
    """softmax(q kᵀ · scale) v, with graphs that change the scores and the probabilities.

    q (N, H, L, D), k (N, G, S, D), v (N, G, S, E) -> (N, H, L, E); H a multiple of G: each group of heads shares one k
    and v. Scores and probabilities have `softmax_precision`, by default float32, of doubles float64.
    """
    _, outer = outer_values(node, (q, k, v, *captured))
    get = node.attributes.get
    default = jnp.promote_types(q.dtype, jnp.float32)
    wide = element_type_of(node, "softmax_precision", default)
    scale = get("scale", q.shape[-1] ** -0.5)
    samples, heads, rows, depth = q.shape
    groups = k.shape[1]
    by_group = q.reshape(samples, groups, heads // groups, rows, depth)
    scores = jnp.einsum("nghld,ngsd->nghls", by_group, k, preferred_element_type=wide) * jnp.asarray(scale, wide)
    scores = scores.reshape(samples, heads, rows, k.shape[2])
    if get("score_mod") is not None:
        (scores,) = run_body(node.attributes["score_mod"], (scores,), outer, context)
    probabilities = softmax(scores, -1)
    if get("prob_mod") is not None:
        (probabilities,) = run_body(node.attributes["prob_mod"], (probabilities,), outer, context)
    weights = probabilities.reshape(samples, groups, heads // groups, rows, k.shape[2]).astype(v.dtype)
    return jnp.einsum("nghls,ngse->nghle", weights, v).reshape(samples, heads, rows, v.shape[-1])


@lowers("Attention", since=23)
def attention(
    node: Operator,
    q: Value,
    k: Value,
    v: Value,
    mask: Value | None = None,
    past_key: Value | None = None,
    past_value: Value | None = None,
    kept: Value | None = None,
) -> tuple[Array, ...]:
    """softmax(q kᵀ · scale + mask) v, and the keys and values with those of the past, and the scores.

    q (N, H, L, D), k (N, G, S, D), v (N, G, S, E) -> (N, H, L, E); H a multiple of G: each group of heads shares one k
    and v. With three dims they are (N, L, H · D), and so is the result. `kept` (N,) is how many keys of a sample are no
    padding. A query that may look at no key gives zeros, and no gradient.

    Source: ONNX operator set 25, "Attention"; earlier sets know fewer attributes and operands.
    """
    get, flat = node.attributes.get, q.ndim == 3
    q = _by_head(q, int(get("q_num_heads", 0)))
    k, v = (_by_head(x, int(get("kv_num_heads", 0))) for x in (k, v))
    past = 0
    if past_key is not None and past_value is not None:
        past = past_key.shape[2]
        k, v = jnp.concatenate([past_key, k], axis=2), jnp.concatenate([past_value, v], axis=2)
    samples, heads, rows, depth = q.shape
    groups, columns = k.shape[1:3]
    # Half of the scale on each side, as the standard wants it, keeps half precision from overflowing.
    root = jnp.asarray(get("scale", depth**-0.5), jnp.float32) ** 0.5
    scaled = (q * root.astype(q.dtype)).reshape(samples, groups, heads // groups, rows, depth)
    raw = jnp.einsum("nghld,ngsd->nghls", scaled, k * root.astype(k.dtype)).reshape(samples, heads, rows, columns)
    cap = get("softcap", 0.0)
    capped = jnp.asarray(cap, raw.dtype) * jnp.tanh(raw / jnp.asarray(cap, raw.dtype)) if cap else raw
    biased = _masked(node, capped, mask, past, kept)
    wide = element_type_of(node, "softmax_precision", q.dtype)
    probabilities = _shares(biased.astype(wide)).astype(q.dtype)
    weights = probabilities.reshape(samples, groups, heads // groups, rows, columns).astype(v.dtype)
    y = jnp.einsum("nghls,ngse->nghle", weights, v).reshape(samples, heads, rows, v.shape[-1]).astype(q.dtype)
    if flat:
        y = y.transpose(0, 2, 1, 3).reshape(samples, rows, heads * v.shape[-1])
    scores = (raw, capped, biased, probabilities)[int(get("qk_matmul_output_mode", 0))]
    return (y, k, v, scores)[: max(len(node.outputs), 1)]


def _by_head(x: Value, heads: int) -> Array:
    """(N, L, heads · D) as (N, heads, L, D); four dims stay."""
    data = jnp.asarray(x)
    if data.ndim == 4:
        return data
    return data.reshape(*data.shape[:2], heads, data.shape[2] // heads).transpose(0, 2, 1, 3)


def _masked(node: Operator, scores: Array, mask: Value | None, past: int, kept: Value | None) -> Array:
    """Scores (N, H, L, S) plus a mask of numbers; minus infinity where a mask, a window or padding allows no look."""
    get = node.attributes.get
    rows, columns = scores.shape[-2:]
    key = jnp.arange(columns)
    query = jnp.arange(rows)[:, None] + past
    allowed: list[Array] = []
    if kept is not None:
        count = jnp.asarray(kept).reshape(-1, 1, 1, 1)
        allowed.append(key < count)
        query = query + (count - rows - past if not past else 0)
    if get("is_causal", 0):
        allowed.append(key <= query)
    left, right = int(get("left_window_size", -1)), int(get("right_window_size", -1))
    if left >= 0:
        allowed.append(key >= query - left)
    if right >= 0:
        allowed.append(key <= query + right)
    if mask is not None:
        given = jnp.asarray(mask)
        missing = columns - given.shape[-1]
        if given.dtype != bool:
            scores = scores + _extended(given, missing, -jnp.inf).astype(scores.dtype)
        else:
            allowed.append(_extended(given, missing, False))
    for part in allowed:
        scores = jnp.where(part, scores, -jnp.inf)
    return scores


def _extended(mask: Array, missing: int, value: Any) -> Array:
    """A mask with `missing` more columns, which allow no look; one of a single column holds for all."""
    if missing <= 0 or mask.shape[-1] == 1:
        return mask
    return jnp.pad(mask, [(0, 0)] * (mask.ndim - 1) + [(0, missing)], constant_values=value)


def _shares(scores: Array) -> Array:
    """softmax over the last axis; zeros where all scores are minus infinity, without a NaN in the gradient."""
    most = lax.stop_gradient(row_maximum(scores, -1))
    powers = jnp.exp(scores - jnp.where(jnp.isfinite(most), most, 0))
    total = jnp.sum(powers, axis=-1, keepdims=True)
    return powers / jnp.where(total == 0, 1, total)


@lowers("RotaryEmbedding", since=23)
def rotary_embedding(node: Operator, x: Value, cos: Value, sin: Value, positions: Value | None = None) -> Array:
    """Pairs of numbers turned by angles that depend on the position: x (N, H, L, D) or (N, L, H · D) -> the same.

    cos, sin: (positions, R/2), looked up at `positions` (N, L), or (N, L, R/2). The first R = `rotary_embedding_dim`
    numbers (default all D) are turned; a pair are neighbours (`interleaved`), or a number and that R/2 further.

    Source: Su et al., RoFormer, arXiv:2104.09864.
    """
    get, data = node.attributes.get, jnp.asarray(x)
    heads = data if data.ndim == 4 else _by_head(data, int(get("num_heads", 0)))
    turned = int(get("rotary_embedding_dim", 0)) or heads.shape[-1]
    cos, sin = (jnp.asarray(c) if positions is None else jnp.asarray(c)[jnp.asarray(positions)] for c in (cos, sin))
    cos, sin = cos[:, None], sin[:, None]
    part, rest = heads[..., :turned], heads[..., turned:]
    if get("interleaved", 0):
        first, second = part[..., 0::2], part[..., 1::2]
    else:
        first, second = jnp.split(part, 2, axis=-1)
    real, imaginary = cos * first - sin * second, sin * first + cos * second
    if get("interleaved", 0):
        both = jnp.stack([real, imaginary], axis=-1).reshape(part.shape)
    else:
        both = jnp.concatenate([real, imaginary], axis=-1)
    y = jnp.concatenate([both, rest], axis=-1)
    return y if data.ndim == 4 else y.transpose(0, 2, 1, 3).reshape(data.shape)

"""Attention and what transformers share: normalisation, positions, masks and the layers' perceptrons.

Every large product is a MatMul with a matrix of weights of its own (q, k, v and the way out; up, perhaps gate, and
down). Heads lie side by side in the last axis, head by head.

Attention is one of two graphs. "fused" is the standard's operator Attention on [batch, seq, heads * width]: one kernel
that never writes the scores down (flash attention). "unfused" writes out what such a kernel computes: heads split off
by Reshape and Transpose, then MatMul, Mul, mask, Softmax, Dropout, MatMul and the way back. Both give the same numbers,
except that only the second drops scores out.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any, Literal

import numpy as np
from onnx import TensorProto

from .builder import Builder, need

__all__ = [
    "AttentionKind",
    "Heads",
    "alibi",
    "attend",
    "causal_mask",
    "feed_forward",
    "gated",
    "layer_norm",
    "rms_norm",
    "rotary",
]

AttentionKind = Literal["fused", "unfused"]
LOWEST = -1e9


@dataclass(frozen=True, kw_only=True)
class Heads:
    """How many heads ask (`count`) and answer (`kv`, a divisor of it), and how wide they are: queries and keys, values."""

    count: int
    kv: int
    width: int
    value_width: int

    @classmethod
    def of(cls, hidden: int, heads: int, kv_heads: int | None = None, width: int | None = None) -> Heads:
        """Heads that share `hidden` evenly, unless a `width` is given."""
        kv = kv_heads or heads
        need("heads", heads, heads > 0 and (width is not None or hidden % heads == 0), f"a divisor of hidden {hidden}")
        need("kv_heads", kv, kv > 0 and heads % kv == 0, f"a divisor of heads {heads}")
        return cls(count=heads, kv=kv, width=width or hidden // heads, value_width=width or hidden // heads)


def attend(
    b: Builder,
    q: str,
    k: str,
    v: str,
    *,
    heads: Heads,
    queries: int,
    keys: int,
    kind: AttentionKind,
    causal: bool = False,
    bias: str = "",
    keep: str = "",
    dropout: float = 0.0,
    scale: float | None = None,
) -> str:
    """softmax(q kᵀ scale + ...) v per head: [batch, queries, heads.count * heads.value_width].

    q, k, v         [batch, queries, heads * width], [batch, keys, kv * width], [batch, keys, kv * value_width]
    causal          a query sees no later key
    bias            added to the scores: whatever broadcasts to [batch, heads, queries, keys]
    keep            bool, broadcasts alike: where it is False nothing is seen
    scale           1 / sqrt(width) unless given
    """
    need("attention", kind, kind in ("fused", "unfused"), "fused or unfused")
    scale = 1.0 / sqrt(heads.width) if scale is None else scale
    if kind == "fused":
        return b.node(
            "Attention",
            q,
            k,
            v,
            *filter(None, (bias or keep,)),
            q_num_heads=heads.count,
            kv_num_heads=heads.kv,
            is_causal=int(causal),
            scale=scale,
        )

    def split(tensor: str, tokens: int, count: int, width: int, perm: list[int]) -> str:
        if count < heads.count:
            tensor = b.reshape(tensor, 0, tokens, count, 1, width)
            tensor = b.node("Expand", tensor, b.constant([1, 1, 1, heads.count // count, 1]))
        return b.node("Transpose", b.reshape(tensor, 0, tokens, heads.count, width), perm=perm)

    q = split(q, queries, heads.count, heads.width, [0, 2, 1, 3])
    k = split(k, keys, heads.kv, heads.width, [0, 2, 3, 1])
    v = split(v, keys, heads.kv, heads.value_width, [0, 2, 1, 3])
    scores = b.node("MatMul", q, k)
    if scale != 1.0:
        scores = b.node("Mul", scores, b.constant(scale))
    if bias:
        scores = b.node("Add", scores, bias)
    for mask in (keep, causal_mask(b, queries, keys) if causal else ""):
        if mask:
            scores = b.node("Where", mask, scores, b.constant(LOWEST))
    seen = b.dropout(b.node("Softmax", scores, axis=-1), dropout)
    mixed = b.node("Transpose", b.node("MatMul", seen, v), perm=[0, 2, 1, 3])
    return b.reshape(mixed, 0, queries, heads.count * heads.value_width)


def causal_mask(b: Builder, queries: int, keys: int) -> str:
    """bool [queries, keys]: a query sees its own position and those before."""

    def make() -> str:
        ones = b.node("ConstantOfShape", b.constant([queries, keys]), value=_true())
        return b.node("Trilu", ones, upper=0, name="causal_mask")

    return b.shared(f"causal {queries} {keys}", make)


def _true() -> TensorProto:
    return TensorProto(data_type=TensorProto.BOOL, dims=[1], int32_data=[1])


def alibi(b: Builder, heads: int, keys: int) -> str:
    """[heads, 1, keys]: what attention with linear biases (Press et al. 2022) adds to the scores.

    Minus the slope of a head times the distance to the query; as a softmax does not see what is the same for a whole
    row, the distance to the last position does as well. Slopes are a geometric series from 2^(-8/n) for n heads, a
    power of two; other numbers of heads take terms of the next series too.
    """

    def series(n: int) -> list[float]:
        return [2.0 ** (-8.0 * (i + 1) / n) for i in range(n)]

    def make() -> str:
        power = 2 ** (heads.bit_length() - 1)
        slopes = series(power) if power == heads else series(power) + series(2 * power)[0::2][: heads - power]
        place = b.node("Range", b.constant(1.0 - keys), b.constant(1.0), b.constant(1.0))
        return b.node("Mul", b.constant(np.reshape(slopes, (heads, 1, 1)), frozen=True), place, name="alibi")

    return b.shared(f"alibi {heads} {keys}", make)


def rotary(b: Builder, x: str, *, tokens: int, heads: int, width: int, base: float, partial: int = 0) -> str:
    """`x` [batch, tokens, heads * width] with each head's first `partial` (or all) elements turned by their position.

    Rotary embeddings (Su et al. 2021), the halves of a head paired. Sines and cosines come from positions and
    frequencies; the numbers of the positions are said for every sample, as the operator wants them.
    """
    turned = partial or width

    def angles(function: str) -> str:
        frequencies = base ** (-np.arange(0, turned, 2) / turned)
        places = b.node("Range", b.constant(0.0), b.constant(float(tokens)), b.constant(1.0))
        column = b.node("Unsqueeze", places, b.constant([1]))
        return b.node(function, b.node("Mul", column, b.constant(frequencies)), name=f"rotary.{function.lower()}")

    cosines = b.shared(f"cos {tokens} {turned} {base}", lambda: angles("Cos"))
    sines = b.shared(f"sin {tokens} {turned} {base}", lambda: angles("Sin"))
    row = b.shared(f"row {tokens}", lambda: b.node("Range", b.constant(0), b.constant(tokens), b.constant(1)))
    positions = b.node("Expand", row, b.node("Shape", x, start=0, end=2))
    extra: dict[str, Any] = {"rotary_embedding_dim": partial} if partial and partial < width else {}
    return b.node("RotaryEmbedding", x, cosines, sines, positions, num_heads=heads, **extra)


def layer_norm(b: Builder, x: str, width: int, *, bias: bool = True, epsilon: float = 1e-5) -> str:
    """LayerNormalization over the last axis."""
    parts = [b.weight((width,), value=1.0)] + ([b.weight((width,), name="bias")] if bias else [])
    return b.node("LayerNormalization", x, *parts, axis=-1, epsilon=epsilon)


def rms_norm(b: Builder, x: str, width: int, *, frozen: bool = False, epsilon: float = 1e-5) -> str:
    """RMSNormalization over the last axis (Zhang and Sennrich 2019)."""
    return b.node("RMSNormalization", x, b.weight((width,), value=1.0, frozen=frozen), axis=-1, epsilon=epsilon)


def feed_forward(b: Builder, x: str, hidden: int, ffn: int, *, bias: bool = True, activation: str = "Gelu") -> str:
    """Two dense layers with an activation between: scopes "up" and "down"."""
    with b.scope("up"):
        y = b.dense(x, hidden, ffn, bias=bias)
    y = b.node(activation, y)
    with b.scope("down"):
        return b.dense(y, ffn, hidden, bias=bias)


def gated(b: Builder, x: str, hidden: int, ffn: int, *, frozen: bool = False, activation: str = "Swish") -> str:
    """A gated perceptron without biases (Shazeer 2020): scopes "gate", "up" and "down"."""
    with b.scope("gate"):
        gate = b.dense(x, hidden, ffn, bias=False, frozen=frozen)
    with b.scope("up"):
        up = b.dense(x, hidden, ffn, bias=False, frozen=frozen)
    y = b.node("Mul", b.node(activation, gate), up)
    with b.scope("down"):
        return b.dense(y, ffn, hidden, bias=False, frozen=frozen)

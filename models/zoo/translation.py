"""Encoders with decoders: the transformer of translation and T5.

Sources: Vaswani et al. 2017 (arXiv 1706.03762), sections 3 and 5.4, table 3; Raffel et al. 2020 (arXiv 1910.10683),
sections 2.1 and 3.1.1, and for version 1.1 its gated perceptrons (Shazeer 2020).
"""

from __future__ import annotations

from math import log, sqrt

import numpy as np
from onnx import ModelProto, TensorProto

from .attention import AttentionKind, Heads, attend, feed_forward, gated, layer_norm, rms_norm
from .builder import Builder, need
from .gpt import language_head

__all__ = ["t5", "transformer"]


def _attention(
    b: Builder,
    x: str,
    memory: str,
    *,
    hidden: int,
    heads: Heads,
    queries: int,
    keys: int,
    kind: AttentionKind,
    causal: bool = False,
    bias: str = "",
    scale: float | None = None,
    dropout: float = 0.0,
    dense_bias: bool = False,
) -> str:
    """Queries from `x`, keys and values from `memory`."""
    wide = heads.count * heads.width
    parts = []
    for part, operand in (("q", x), ("k", memory), ("v", memory)):
        with b.scope(part):
            parts.append(b.dense(operand, hidden, wide, bias=dense_bias))
    q, k, v = parts
    y = attend(
        b,
        q,
        k,
        v,
        heads=heads,
        queries=queries,
        keys=keys,
        kind=kind,
        causal=causal,
        bias=bias,
        scale=scale,
        dropout=dropout,
    )
    with b.scope("out"):
        return b.dense(y, wide, hidden, bias=dense_bias)


def _waves(b: Builder, tokens: int, width: int) -> str:
    """Sines, then cosines of the positions at `width` / 2 wavelengths from 2 pi to 10,000 * 2 pi: [tokens, width]."""

    def make() -> str:
        steps = np.arange(width // 2) / max(width // 2 - 1, 1)
        frequencies = b.constant(np.exp(-log(10000.0) * steps), frozen=True)
        places = b.node("Range", b.constant(0.0), b.constant(float(tokens)), b.constant(1.0))
        angles = b.node("Mul", b.node("Unsqueeze", places, b.constant([1])), frequencies)
        return b.node("Concat", b.node("Sin", angles), b.node("Cos", angles), axis=1, name="waves")

    return b.shared(f"waves {tokens} {width}", make)


def transformer(
    *,
    layers: int = 6,
    hidden: int = 1024,
    heads: int = 16,
    ffn: int | None = None,
    seq_len: int = 32,
    target_len: int | None = None,
    vocab: int = 33708,
    dropout: float = 0.1,
    attention: AttentionKind = "unfused",
    seed: int | None = None,
    name: str = "transformer",
) -> ModelProto:
    """Translation: inputs "tokens" [batch, seq_len] and "target_tokens" [batch, target_len], output "logits" of the latter.

    `layers` in the encoder and as many in the decoder; normalisation after each part; positions are waves; one
    embedding for both languages and the output. The big one by default: 211 million parameters with 33,708 words.
    """
    need("layers", layers, layers > 0, "at least one layer")
    need("hidden", hidden, hidden % 2 == 0, "an even number")
    split, inner, targets = Heads.of(hidden, heads), ffn or 4 * hidden, target_len or seq_len
    b = Builder(name=name, seed=seed)
    with b.scope("embedding"):
        table = b.weight((vocab, hidden), fan_in=hidden)

    def embedded(tokens: str, count: int) -> str:
        x = b.node("Mul", b.node("Gather", table, tokens, axis=0), b.constant(sqrt(hidden)))
        return b.dropout(b.node("Add", x, _waves(b, count, hidden)), dropout)

    def part(x: str, y: str) -> str:
        with b.scope("norm"):
            return layer_norm(b, b.node("Add", x, b.dropout(y, dropout), name="sum"), hidden)

    def attention_to(x: str, memory: str, queries: int, keys: int, *, causal: bool = False) -> str:
        y = _attention(
            b,
            x,
            memory,
            hidden=hidden,
            heads=split,
            queries=queries,
            keys=keys,
            kind=attention,
            causal=causal,
            dropout=dropout,
            dense_bias=True,
        )
        return part(x, y)

    with b.scope("encoder"):
        memory = embedded(b.input("tokens", seq_len, dtype=TensorProto.INT64), seq_len)
        for layer in range(layers):
            with b.scope(f"layers.{layer}"):
                with b.scope("attention"):
                    memory = attention_to(memory, memory, seq_len, seq_len)
                with b.scope("mlp"):
                    memory = part(memory, feed_forward(b, memory, hidden, inner, activation="Relu"))
    with b.scope("decoder"):
        x = embedded(b.input("target_tokens", targets, dtype=TensorProto.INT64), targets)
        for layer in range(layers):
            with b.scope(f"layers.{layer}"):
                with b.scope("attention"):
                    x = attention_to(x, x, targets, targets, causal=True)
                with b.scope("cross"):
                    x = attention_to(x, memory, targets, seq_len)
                with b.scope("mlp"):
                    x = part(x, feed_forward(b, x, hidden, inner, activation="Relu"))
    logits = language_head(b, x, table=table, hidden=hidden, vocab=vocab)
    return b.model(logits=(logits, (targets, vocab)))


def _distance_buckets(queries: int, keys: int, *, both: bool, buckets: int, furthest: int) -> np.ndarray:
    """The bucket of each distance key - query from 1 - queries to keys - 1: exact when near, by logarithm when far."""
    distance = np.arange(1 - queries, keys)
    bucket = np.zeros_like(distance)
    if both:
        buckets //= 2
        bucket += buckets * (distance > 0)
        away = np.abs(distance)
    else:
        away = np.maximum(-distance, 0)
    exact = buckets // 2
    far = exact + (np.log(np.maximum(away, 1) / exact) / log(furthest / exact) * (buckets - exact)).astype(np.int64)
    return bucket + np.where(away < exact, away, np.minimum(far, buckets - 1))


def _relative_bias(b: Builder, heads: int, tokens: int, *, both: bool, buckets: int = 32, furthest: int = 128) -> str:
    """[1, heads, tokens, tokens]: a learned number for each head and bucket of distances, which all layers share."""
    with b.scope("relative"):
        found = b.constant(_distance_buckets(tokens, tokens, both=both, buckets=buckets, furthest=furthest))
        by_distance = b.node("Gather", b.weight((buckets, heads), fan_in=heads, said=True), found, axis=0)

        def index() -> str:
            up = b.node("Range", b.constant(0), b.constant(tokens), b.constant(1))
            row = b.node("Add", up, b.constant(tokens - 1))
            return b.node("Sub", row, b.node("Unsqueeze", up, b.constant([1])), name="distance")

        table = b.node("Gather", by_distance, b.shared(f"distance {tokens}", index), axis=0)
        return b.node("Unsqueeze", b.node("Transpose", table, perm=[2, 0, 1]), b.constant([0]))


def t5(
    *,
    layers: int = 12,
    hidden: int = 768,
    heads: int = 12,
    head_width: int = 64,
    ffn: int = 3072,
    gated_ffn: bool = False,
    tied: bool = True,
    seq_len: int = 512,
    target_len: int = 114,
    vocab: int = 32128,
    dropout: float = 0.0,
    attention: AttentionKind = "unfused",
    seed: int | None = None,
    name: str = "t5",
) -> ModelProto:
    """T5: inputs "tokens" [batch, seq_len] and "target_tokens" [batch, target_len], output "logits" of the latter.

    `layers` in the encoder and as many in the decoder, without biases; scores are not scaled. Version 1.1 has
    `gated_ffn` and is not `tied`. T5-base by default: 223 million parameters.
    """
    need("layers", layers, layers > 0, "at least one layer")
    split = Heads.of(hidden, heads, width=head_width)
    b = Builder(name=name, seed=seed)
    with b.scope("embedding"):
        table = b.weight((vocab, hidden), fan_in=hidden)

    def attended(x: str, memory: str, queries: int, keys: int, *, causal: bool = False, bias: str = "") -> str:
        with b.scope("norm"):
            y = rms_norm(b, x, hidden, epsilon=1e-6)
        y = _attention(
            b,
            y,
            memory or y,
            hidden=hidden,
            heads=split,
            queries=queries,
            keys=keys,
            kind=attention,
            causal=causal,
            bias=bias,
            scale=1.0,
            dropout=dropout,
        )
        return b.node("Add", x, b.dropout(y, dropout), name="sum")

    def perceptron(x: str) -> str:
        with b.scope("norm"):
            y = rms_norm(b, x, hidden, epsilon=1e-6)
        if gated_ffn:
            y = gated(b, y, hidden, ffn, activation="Gelu")
        else:
            y = feed_forward(b, y, hidden, ffn, bias=False, activation="Relu")
        return b.node("Add", x, b.dropout(y, dropout), name="sum")

    def finish(x: str) -> str:
        with b.scope("norm"):
            return b.dropout(rms_norm(b, x, hidden, epsilon=1e-6), dropout)

    with b.scope("encoder"):
        x = b.node("Gather", table, b.input("tokens", seq_len, dtype=TensorProto.INT64), axis=0)
        x, near = b.dropout(x, dropout), _relative_bias(b, heads, seq_len, both=True)
        for layer in range(layers):
            with b.scope(f"layers.{layer}"):
                with b.scope("attention"):
                    x = attended(x, "", seq_len, seq_len, bias=near)
                with b.scope("mlp"):
                    x = perceptron(x)
        memory = finish(x)
    with b.scope("decoder"):
        x = b.node("Gather", table, b.input("target_tokens", target_len, dtype=TensorProto.INT64), axis=0)
        x, near = b.dropout(x, dropout), _relative_bias(b, heads, target_len, both=False)
        for layer in range(layers):
            with b.scope(f"layers.{layer}"):
                with b.scope("attention"):
                    x = attended(x, "", target_len, target_len, causal=True, bias=near)
                with b.scope("cross"):
                    x = attended(x, memory, target_len, seq_len)
                with b.scope("mlp"):
                    x = perceptron(x)
        x = finish(x)
    if tied:
        x = b.node("Mul", x, b.constant(1.0 / sqrt(hidden)))
    logits = language_head(b, x, table=table if tied else "", hidden=hidden, vocab=vocab)
    return b.model(logits=(logits, (target_len, vocab)))

"""BERT: an encoder that sees both ways, normalisation after each part, and its two tasks of pretraining.

Source: Devlin et al. 2019 (arXiv 1810.04805), sections 3 and A.1 to A.2.
"""

from __future__ import annotations

from typing import Any

from onnx import ModelProto, TensorProto

from .attention import AttentionKind, Heads, attend, feed_forward, layer_norm
from .builder import Builder, need

__all__ = ["bert"]


def bert(
    *,
    layers: int = 24,
    hidden: int = 1024,
    heads: int = 16,
    seq_len: int = 512,
    vocab: int = 30522,
    ffn: int | None = None,
    max_positions: int = 512,
    predictions: int | None = None,
    padding: bool = True,
    dropout: float = 0.1,
    attention: AttentionKind = "unfused",
    pretraining: bool = True,
    seed: int | None = None,
    name: str = "bert",
) -> ModelProto:
    """An encoder: inputs "tokens" and "segments" [batch, seq_len] and, with `padding`, "mask" (1 for a token, 0 for none).

    With `pretraining` the outputs are "logits" of masked words, "next_sentence" [batch, 2] and "loss", the sum of both
    cross-entropies to the inputs "labels" and "next_labels" [batch]. The words are all positions ([batch, seq_len,
    vocab]) or, with `predictions`, so many per sequence, whose positions are one more input ("positions" [batch,
    predictions]) and labels [batch, predictions]. Without it the output is "hidden" [batch, seq_len, hidden].
    336 million parameters by default, 110 million with 12 layers of 768 and 12 heads.
    """
    need("layers", layers, layers > 0, "at least one layer")
    need("seq_len", seq_len, seq_len <= max_positions, f"at most max_positions, {max_positions}")
    split = Heads.of(hidden, heads)
    b = Builder(name=name, seed=seed)
    tokens = b.input("tokens", seq_len, dtype=TensorProto.INT64)
    segments = b.input("segments", seq_len, dtype=TensorProto.INT64)
    seen: dict[str, Any] = {}
    if padding:
        mask = b.input("mask", seq_len)
        with b.scope("mask"):
            wide = b.node("Unsqueeze", mask, b.constant([1, 2]))
            if attention == "fused":
                seen["keep"] = b.node("Cast", wide, to=TensorProto.BOOL)
            else:
                seen["bias"] = b.node("Mul", b.node("Sub", b.constant(1.0), wide), b.constant(-10000.0))
    with b.scope("embedding"):
        table = b.weight((vocab, hidden), fan_in=hidden)
        x = b.node("Gather", table, tokens, axis=0, name="tokens")
        x = b.node("Add", x, b.node("Gather", b.weight((2, hidden), fan_in=hidden, name="segments"), segments, axis=0))
        places = b.weight((max_positions, hidden), fan_in=hidden, name="positions", said=True)
        row = b.shared(f"row {seq_len}", lambda: b.node("Range", b.constant(0), b.constant(seq_len), b.constant(1)))
        x = b.node("Add", x, b.node("Gather", places, row, axis=0))
        x = b.dropout(layer_norm(b, x, hidden, epsilon=1e-12), dropout)
    for layer in range(layers):
        with b.scope(f"layers.{layer}"):
            with b.scope("attention"):
                parts = []
                for part in ("q", "k", "v"):
                    with b.scope(part):
                        parts.append(b.dense(x, hidden, hidden))
                q, k, v = parts
                y = attend(
                    b, q, k, v, heads=split, queries=seq_len, keys=seq_len, kind=attention, dropout=dropout, **seen
                )
                with b.scope("out"):
                    y = b.dropout(b.dense(y, hidden, hidden), dropout)
                with b.scope("norm"):
                    x = layer_norm(b, b.node("Add", x, y, name="sum"), hidden, epsilon=1e-12)
            with b.scope("mlp"):
                y = b.dropout(feed_forward(b, x, hidden, ffn or 4 * hidden), dropout)
                with b.scope("norm"):
                    x = layer_norm(b, b.node("Add", x, y, name="sum"), hidden, epsilon=1e-12)
    if not pretraining:
        return b.model(hidden=(x, (seq_len, hidden)))
    return _pretrain(b, x, table, hidden=hidden, vocab=vocab, seq_len=seq_len, predictions=predictions)


def _pretrain(
    b: Builder, x: str, table: str, *, hidden: int, vocab: int, seq_len: int, predictions: int | None
) -> ModelProto:
    words = predictions or seq_len
    with b.scope("pooler"):
        first = b.node("Gather", x, b.constant(0), axis=1)
        pooled = b.node("Tanh", b.dense(first, hidden, hidden))
    with b.scope("next_sentence"):
        pair = b.dense(pooled, hidden, 2)
    with b.scope("words"):
        if predictions is not None:
            places = b.input("positions", predictions, dtype=TensorProto.INT64)
            x = b.node("GatherND", x, b.node("Unsqueeze", places, b.constant([2])), batch_dims=1)
        y = layer_norm(b, b.node("Gelu", b.dense(x, hidden, hidden)), hidden, epsilon=1e-12)
        y = b.node("MatMul", y, b.node("Transpose", table, perm=[1, 0]))
        logits = b.node("Add", y, b.weight((vocab,), name="bias"))
    labels = b.input("labels", words, dtype=TensorProto.INT64)
    next_labels = b.input("next_labels", dtype=TensorProto.INT64)
    with b.scope("loss"):
        by_word = b.cross_entropy(b.reshape(logits, -1, vocab), b.reshape(labels, -1), ignore_index=-1)
        loss = b.node("Add", by_word, b.cross_entropy(pair, next_labels), name="total")
    return b.model(logits=(logits, (words, vocab)), next_sentence=(pair, (2,)), loss=(loss, None))

"""Vision transformers (Dosovitskiy et al. 2021, arXiv 2010.11929, table 1)."""

from __future__ import annotations

from onnx import ModelProto

from .attention import AttentionKind, Heads, attend, feed_forward, layer_norm
from .builder import Builder, need

__all__ = ["vit"]


def vit(
    *,
    layers: int = 12,
    hidden: int = 768,
    heads: int = 12,
    ffn: int | None = None,
    image: int = 224,
    patch: int = 16,
    classes: int = 1000,
    dropout: float = 0.0,
    attention: AttentionKind = "fused",
    seed: int | None = None,
    name: str = "vit",
) -> ModelProto:
    """Input "x" [batch, 3, image, image], output "y" [batch, classes]; ViT-B/16 by default: 86.6 million parameters.

    Patches become tokens by a convolution; one more token, learned, gathers what the head reads.
    """
    need("patch", patch, patch > 0 and image % patch == 0, f"a divisor of image {image}")
    split = Heads.of(hidden, heads)
    tokens = (image // patch) ** 2 + 1
    b = Builder(name=name, seed=seed)
    x = b.input("x", 3, image, image)
    with b.scope("embedding"):
        weight = b.weight((hidden, 3, patch, patch), fan_in=3 * patch * patch)
        y = b.node("Conv", x, weight, b.weight((hidden,), name="bias"), kernel_shape=[patch] * 2, strides=[patch] * 2)
        y = b.node("Transpose", b.reshape(y, 0, hidden, tokens - 1), perm=[0, 2, 1])
        # A zero for every sample, plus the learned token: so the token is a weight like a bias.
        none = b.node(
            "ConstantOfShape", b.node("Concat", b.node("Shape", y, start=0, end=1), b.constant([1, hidden]), axis=0)
        )
        first = b.node("Add", none, b.weight((hidden,), name="class_token"))
        x = b.node(
            "Add", b.node("Concat", first, y, axis=1), b.weight((tokens, hidden), fan_in=hidden, name="positions")
        )
        x = b.dropout(x, dropout)
    for layer in range(layers):
        with b.scope(f"layers.{layer}"):
            with b.scope("attention"):
                with b.scope("norm"):
                    y = layer_norm(b, x, hidden, epsilon=1e-6)
                parts = []
                for part in ("q", "k", "v"):
                    with b.scope(part):
                        parts.append(b.dense(y, hidden, hidden))
                q, k, v = parts
                y = attend(b, q, k, v, heads=split, queries=tokens, keys=tokens, kind=attention, dropout=dropout)
                with b.scope("out"):
                    y = b.dense(y, hidden, hidden)
                x = b.node("Add", x, b.dropout(y, dropout), name="sum")
            with b.scope("mlp"):
                with b.scope("norm"):
                    y = layer_norm(b, x, hidden, epsilon=1e-6)
                y = feed_forward(b, y, hidden, ffn or 4 * hidden)
                x = b.node("Add", x, b.dropout(y, dropout), name="sum")
    with b.scope("norm"):
        x = layer_norm(b, x, hidden, epsilon=1e-6)
    with b.scope("head"):
        y = b.classify(b.node("Gather", x, b.constant(0), axis=1), hidden, classes)
    return b.model(y=(y, (classes,)))

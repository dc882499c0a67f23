"""A stack of transformer blocks between nothing and nothing: what machines are measured with."""

from __future__ import annotations

from onnx import ModelProto

from .attention import Heads, attend, feed_forward, layer_norm
from .builder import Builder, need

__all__ = ["gpt_blocks"]


def gpt_blocks(
    *,
    layers: int = 4,
    width: int = 512,
    heads: int = 8,
    tokens: int = 256,
    seed: int | None = 0,
    name: str = "gpt_blocks",
) -> ModelProto:
    """Input "x" [batch, tokens, width], embedded already; output "y" of the same shape, normalised.

    Each block is causal self-attention and a perceptron four times as wide (GELU), both behind a layer normalisation
    and beside a residual sum.
    """
    need("layers, tokens", (layers, tokens), min(layers, tokens) > 0, "no zeros")
    split = Heads.of(width, heads)
    b = Builder(name=name, seed=seed)
    x = b.input("x", tokens, width)
    for layer in range(layers):
        with b.scope(f"layers.{layer}"):
            y = layer_norm(b, x, width)
            q, k, v = (b.dense(y, width, width) for _ in range(3))
            y = attend(b, q, k, v, heads=split, queries=tokens, keys=tokens, kind="unfused", causal=True)
            x = b.node("Add", x, b.dense(y, width, width))
            x = b.node("Add", x, feed_forward(b, layer_norm(b, x, width), width, 4 * width))
    return b.model(y=(layer_norm(b, x, width), (tokens, width)))

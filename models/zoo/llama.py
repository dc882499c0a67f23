"""Llama: RMS normalisation, rotary positions, grouped-query attention, gated perceptrons; also by low-rank adapters.

Sources: Touvron et al. 2023 (Llama 2: table 1 and appendix A.1), Grattafiori et al. 2024 (Llama 3: table 3), Hu et al.
2022 (LoRA, section 4.1).
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from onnx import ModelProto, TensorProto

from .attention import AttentionKind, Heads, attend, rms_norm, rotary
from .builder import Builder, need
from .gpt import language_head, token_embedding

__all__ = ["Product", "grouped_attention", "llama"]

# (name, operand, its width, the result's width) -> result
Product = Callable[[str, str, int, int], str]
ATTENTION = ("q", "k", "v", "out")
PERCEPTRON = ("gate", "up", "down")


def _adapted(b: Builder, x: str, fan_in: int, fan_out: int, *, rank: int, dropout: float, adapted: bool) -> str:
    """``x W``, or with an adapter ``x W + x A B`` where W [fan_in, fan_out] stays as it is; A has `rank` columns."""
    y = b.dense(x, fan_in, fan_out, bias=False, frozen=rank > 0)
    if not rank or not adapted:
        return y
    with b.scope("lora"):
        down = b.node("MatMul", b.dropout(x, dropout), b.weight((fan_in, rank), fan_in=fan_in, name="a"), name="down")
        up = b.node("MatMul", down, b.weight((rank, fan_out), name="b"), name="up")
        return b.node("Add", y, up, name="sum")


def grouped_attention(
    b: Builder, x: str, product: Product, hidden: int, *, heads: Heads, tokens: int, base: float, kind: AttentionKind
) -> str:
    """Causal attention with rotary positions; `product` makes the products "q", "k", "v" and "out"."""
    wide, narrow = heads.count * heads.width, heads.kv * heads.width
    q, k, v = (product(part, x, hidden, width) for part, width in (("q", wide), ("k", narrow), ("v", narrow)))
    q = rotary(b, q, tokens=tokens, heads=heads.count, width=heads.width, base=base)
    k = rotary(b, k, tokens=tokens, heads=heads.kv, width=heads.width, base=base)
    y = attend(b, q, k, v, heads=heads, queries=tokens, keys=tokens, kind=kind, causal=True)
    return product("out", y, wide, hidden)


def llama(
    *,
    layers: int = 32,
    hidden: int = 4096,
    heads: int = 32,
    kv_heads: int | None = None,
    ffn: int = 11008,
    seq_len: int = 4096,
    vocab: int = 32000,
    head_width: int | None = None,
    rope_base: float = 10000.0,
    qkv_bias: bool = False,
    tied: bool = False,
    lora_rank: int = 0,
    lora_on: Collection[str] = ATTENTION,
    lora_dropout: float = 0.0,
    attention: AttentionKind = "fused",
    seed: int | None = None,
    name: str = "llama",
) -> ModelProto:
    """A causal language model: input "tokens" [batch, seq_len], output "logits" [batch, seq_len, vocab].

    kv_heads   heads of keys and values; as many as `heads` unless given
    qkv_bias   biases of q, k and v (Qwen 2)
    lora_rank  0 trains all; else everything is frozen but an adapter of this rank on each product of `lora_on`
               ("q", "k", "v", "out", "gate", "up", "down")
    """
    need("layers", layers, layers > 0, "at least one layer")
    every = (*ATTENTION, *PERCEPTRON)
    need("lora_on", tuple(lora_on), set(lora_on) <= set(every), f"some of {', '.join(every)}")
    split = Heads.of(hidden, heads, kv_heads, head_width)
    frozen = lora_rank > 0
    b = Builder(name=name, seed=seed)

    def product(part: str, x: str, fan_in: int, fan_out: int) -> str:
        with b.scope(part):
            y = _adapted(b, x, fan_in, fan_out, rank=lora_rank, dropout=lora_dropout, adapted=part in lora_on)
            biased = qkv_bias and part in ("q", "k", "v")
            return b.node("Add", y, b.weight((fan_out,), name="bias", frozen=frozen)) if biased else y

    def norm(x: str) -> str:
        with b.scope("norm"):
            return rms_norm(b, x, hidden, frozen=frozen)

    tokens = b.input("tokens", seq_len, dtype=TensorProto.INT64)
    x, table = token_embedding(b, hidden=hidden, vocab=vocab, tokens=tokens, frozen=frozen)
    for layer in range(layers):
        with b.scope(f"layers.{layer}"):
            with b.scope("attention"):
                y = norm(x)
                y = grouped_attention(
                    b, y, product, hidden, heads=split, tokens=seq_len, base=rope_base, kind=attention
                )
                x = b.node("Add", x, y, name="sum")
            with b.scope("mlp"):
                y = norm(x)
                y = b.node(
                    "Mul", b.node("Swish", product("gate", y, hidden, ffn)), product("up", y, hidden, ffn), name="gated"
                )
                x = b.node("Add", x, product("down", y, ffn, hidden), name="sum")
    x = norm(x)
    logits = language_head(b, x, table=table if tied else "", hidden=hidden, vocab=vocab, frozen=frozen)
    return b.model(logits=(logits, (seq_len, vocab)))

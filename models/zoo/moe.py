"""Mixtures of experts: Mixtral and its kind, and DeepSeek's with latent attention and shared experts.

Sources: Jiang et al. 2024 (Mixtral, arXiv 2401.04088, section 2), DeepSeek-AI 2024 (DeepSeek-V2, arXiv 2405.04434,
sections 2.1 and 2.2), Lepikhin et al. 2021 (GShard: capacity).

How tokens find their experts, with static shapes and a symbolic batch: of every sample each expert takes `capacity` =
ceil(tokens * top_k / experts * capacity_factor) tokens, those among whose `top_k` experts it is with the largest gates;
tokens beyond that pass by, and places left over have a gate of zero. In operators:

    router    MatMul [hidden, experts] -> Softmax -> TopK -> ScatterElements (gates [batch, tokens, experts])
              -> Transpose -> TopK (gates and places [experts, batch, capacity])
    dispatch  Gather of rows [batch * tokens, hidden] by [experts, capacity * batch]: [experts, capacity * batch, hidden]
    experts   MatMul with three-dimensional weights [experts, hidden, ffn] and back
    combine   Mul with the gates, ScatterND (add) into zeros [batch * tokens, hidden]
"""

from __future__ import annotations

from math import ceil

from onnx import ModelProto, TensorProto

from .attention import AttentionKind, Heads, attend, gated, rms_norm, rotary
from .builder import Builder, need
from .gpt import language_head, token_embedding
from .llama import grouped_attention

__all__ = ["deepseek_v2", "mixtral", "mixture"]


def mixture(
    b: Builder,
    x: str,
    *,
    hidden: int,
    ffn: int,
    experts: int,
    top_k: int,
    tokens: int,
    capacity_factor: float = 1.0,
    sum_to_one: bool = True,
) -> str:
    """What the experts make of `x` [batch, tokens, hidden]; `sum_to_one` scales each token's gates to a sum of one."""
    need("top_k", top_k, 0 < top_k <= experts, f"1 to experts, {experts}")
    need("capacity_factor", capacity_factor, capacity_factor > 0, "more than 0")
    capacity = min(ceil(tokens * top_k / experts * capacity_factor), tokens)
    with b.scope("router"):
        chance = b.node("Softmax", b.dense(x, hidden, experts, bias=False), axis=-1)
        gates, chosen = b.split("TopK", chance, b.constant([top_k]), results=2, axis=-1)
        if sum_to_one:
            gates = b.node("Div", gates, b.node("ReduceSum", gates, b.constant([-1])))
        nothing = b.node("ConstantOfShape", b.node("Shape", chance))
        spread = b.node("ScatterElements", nothing, chosen, gates, axis=2)
        by_expert = b.node("Transpose", spread, perm=[2, 0, 1])
        gates, places = b.split("TopK", by_expert, b.constant([capacity]), results=2, axis=-1)
        # Rows of all samples are numbered through.
        samples = b.node("Squeeze", b.node("Shape", x, start=0, end=1), b.constant([0]))
        numbers = b.node("Range", b.constant(0), samples, b.constant(1))
        first = b.node("Mul", b.node("Unsqueeze", numbers, b.constant([1])), b.constant(tokens))
        rows = b.reshape(b.node("Add", places, first), experts, -1)
    flat = b.reshape(x, -1, hidden)
    y = b.node("Gather", flat, rows, axis=0, name="dispatch")
    with b.scope("experts"):
        y = _experts(b, y, hidden, ffn, experts)
    y = b.node("Mul", y, b.reshape(gates, experts, -1, 1))
    zeros = b.node("ConstantOfShape", b.node("Shape", flat))
    y = b.node("ScatterND", zeros, b.node("Unsqueeze", rows, b.constant([2])), y, reduction="add", name="combine")
    return b.reshape(y, -1, tokens, hidden)


def _experts(b: Builder, x: str, hidden: int, ffn: int, experts: int) -> str:
    """A gated perceptron for each expert: [experts, rows, hidden] to the same shape."""

    def product(part: str, x: str, fan_in: int, fan_out: int) -> str:
        with b.scope(part):
            return b.node("MatMul", x, b.weight((experts, fan_in, fan_out), fan_in=fan_in))

    y = b.node("Mul", b.node("Swish", product("gate", x, hidden, ffn)), product("up", x, hidden, ffn), name="gated")
    return product("down", y, ffn, hidden)


def mixtral(
    *,
    layers: int = 32,
    hidden: int = 4096,
    heads: int = 32,
    kv_heads: int | None = 8,
    head_width: int | None = None,
    ffn: int = 14336,
    experts: int = 8,
    top_k: int = 2,
    shared_ffn: int = 0,
    dense_layers: int = 0,
    dense_ffn: int | None = None,
    capacity_factor: float = 1.0,
    sum_to_one: bool = True,
    seq_len: int = 4096,
    vocab: int = 32000,
    rope_base: float = 1e6,
    tied: bool = False,
    attention: AttentionKind = "fused",
    seed: int | None = None,
    name: str = "mixtral",
) -> ModelProto:
    """A Llama whose perceptrons are experts: input "tokens" [batch, seq_len], output "logits" [batch, seq_len, vocab].

    ffn          of one expert
    shared_ffn   of an expert that sees every token; 0 for none
    dense_layers the first so many layers have one perceptron of `dense_ffn` instead

    46.7 billion parameters by default (Mixtral 8x7B).
    """
    need("layers", layers, layers > 0, "at least one layer")
    split = Heads.of(hidden, heads, kv_heads, head_width)
    b = Builder(name=name, seed=seed)

    def product(part: str, x: str, fan_in: int, fan_out: int) -> str:
        with b.scope(part):
            return b.dense(x, fan_in, fan_out, bias=False)

    x, table = token_embedding(
        b, hidden=hidden, vocab=vocab, tokens=b.input("tokens", seq_len, dtype=TensorProto.INT64)
    )
    for layer in range(layers):
        with b.scope(f"layers.{layer}"):
            with b.scope("attention"):
                y = rms_norm(b, x, hidden)
                y = grouped_attention(
                    b, y, product, hidden, heads=split, tokens=seq_len, base=rope_base, kind=attention
                )
                x = b.node("Add", x, y, name="sum")
            with b.scope("mlp"):
                y = rms_norm(b, x, hidden)
                if layer < dense_layers:
                    y = gated(b, y, hidden, dense_ffn or ffn)
                else:
                    y = _mixed(
                        b,
                        y,
                        shared_ffn=shared_ffn,
                        hidden=hidden,
                        ffn=ffn,
                        experts=experts,
                        top_k=top_k,
                        tokens=seq_len,
                        capacity_factor=capacity_factor,
                        sum_to_one=sum_to_one,
                    )
                x = b.node("Add", x, y, name="sum")
    x = rms_norm(b, x, hidden)
    logits = language_head(b, x, table=table if tied else "", hidden=hidden, vocab=vocab)
    return b.model(logits=(logits, (seq_len, vocab)))


def _mixed(b: Builder, x: str, *, shared_ffn: int, hidden: int, **experts: float) -> str:
    """A mixture, and beside it an expert for all."""
    y = mixture(b, x, hidden=hidden, **experts)  # type: ignore[arg-type]
    if not shared_ffn:
        return y
    with b.scope("shared"):
        return b.node("Add", y, gated(b, x, hidden, shared_ffn))


def _latent_attention(
    b: Builder,
    x: str,
    *,
    hidden: int,
    heads: int,
    width: int,
    rope_width: int,
    value_width: int,
    q_rank: int,
    kv_rank: int,
    tokens: int,
    base: float,
    kind: AttentionKind,
) -> str:
    """Multi-head latent attention: keys and values from `kv_rank` numbers per token, positions in one key for all heads.

    A head's first `rope_width` elements carry the position, so its queries and keys are `rope_width + width` wide.
    """
    both = rope_width + width
    with b.scope("q"):
        y = x
        if q_rank:
            with b.scope("down"):
                y = b.dense(x, hidden, q_rank, bias=False)
            with b.scope("norm"):
                y = rms_norm(b, y, q_rank)
        q = b.dense(y, q_rank or hidden, heads * both, bias=False)
    q = rotary(b, q, tokens=tokens, heads=heads, width=both, base=base, partial=rope_width)
    with b.scope("kv"):
        with b.scope("down"):
            latent = b.dense(x, hidden, kv_rank, bias=False)
        with b.scope("norm"):
            latent = rms_norm(b, latent, kv_rank)
    with b.scope("k_position"):
        shared = b.dense(x, hidden, rope_width, bias=False)
    shared = rotary(b, shared, tokens=tokens, heads=1, width=rope_width, base=base)
    shared = b.node("Expand", b.reshape(shared, 0, tokens, 1, rope_width), b.constant([1, 1, heads, 1]))
    with b.scope("k"):
        k = b.reshape(b.dense(latent, kv_rank, heads * width, bias=False), 0, tokens, heads, width)
    k = b.reshape(b.node("Concat", shared, k, axis=3), 0, tokens, heads * both)
    with b.scope("v"):
        v = b.dense(latent, kv_rank, heads * value_width, bias=False)
    split = Heads(count=heads, kv=heads, width=both, value_width=value_width)
    y = attend(b, q, k, v, heads=split, queries=tokens, keys=tokens, kind=kind, causal=True)
    with b.scope("out"):
        return b.dense(y, heads * value_width, hidden, bias=False)


def deepseek_v2(
    *,
    layers: int = 60,
    hidden: int = 5120,
    heads: int = 128,
    head_width: int = 128,
    rope_width: int = 64,
    value_width: int = 128,
    q_rank: int = 1536,
    kv_rank: int = 512,
    ffn: int = 1536,
    experts: int = 160,
    top_k: int = 6,
    shared_ffn: int = 3072,
    dense_layers: int = 1,
    dense_ffn: int = 12288,
    capacity_factor: float = 1.0,
    sum_to_one: bool = False,
    seq_len: int = 4096,
    vocab: int = 102400,
    rope_base: float = 10000.0,
    attention: AttentionKind = "fused",
    seed: int | None = None,
    name: str = "deepseek_v2",
) -> ModelProto:
    """DeepSeek-V2: input "tokens" [batch, seq_len], output "logits" [batch, seq_len, vocab]; 236 billion parameters.

    head_width, rope_width, value_width  of a head: without position, with it, and its values
    q_rank, kv_rank                      of the latent queries (0: none), and of keys and values together
    ffn, shared_ffn                      of one expert, and of all shared experts together
    dense_layers, dense_ffn              the first layers, which have one perceptron
    """
    need("layers", layers, layers > 0, "at least one layer")
    b = Builder(name=name, seed=seed)
    tokens = b.input("tokens", seq_len, dtype=TensorProto.INT64)
    x, _ = token_embedding(b, hidden=hidden, vocab=vocab, tokens=tokens)
    for layer in range(layers):
        with b.scope(f"layers.{layer}"):
            with b.scope("attention"):
                y = _latent_attention(
                    b,
                    rms_norm(b, x, hidden),
                    hidden=hidden,
                    heads=heads,
                    width=head_width,
                    rope_width=rope_width,
                    value_width=value_width,
                    q_rank=q_rank,
                    kv_rank=kv_rank,
                    tokens=seq_len,
                    base=rope_base,
                    kind=attention,
                )
                x = b.node("Add", x, y, name="sum")
            with b.scope("mlp"):
                y = rms_norm(b, x, hidden)
                if layer < dense_layers:
                    y = gated(b, y, hidden, dense_ffn)
                else:
                    y = _mixed(
                        b,
                        y,
                        shared_ffn=shared_ffn,
                        hidden=hidden,
                        ffn=ffn,
                        experts=experts,
                        top_k=top_k,
                        tokens=seq_len,
                        capacity_factor=capacity_factor,
                        sum_to_one=sum_to_one,
                    )
                x = b.node("Add", x, y, name="sum")
    x = rms_norm(b, x, hidden)
    return b.model(logits=(language_head(b, x, hidden=hidden, vocab=vocab), (seq_len, vocab)))

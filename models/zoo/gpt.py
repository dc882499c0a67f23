"""Decoders of the GPT kind: normalisation before each part, learned positions or linear biases, embedding = output.

Sources: GPT-2 and 3 (Radford et al. 2019, section 2.3; Brown et al. 2020, table 2.1), MPT (MosaicML 2023: no biases,
linear biases of positions after Press et al. 2022).
"""

from __future__ import annotations

from onnx import ModelProto, TensorProto

from .attention import AttentionKind, Heads, alibi, attend, feed_forward, layer_norm
from .builder import Builder, need

__all__ = ["gpt", "language_head", "mpt", "token_embedding"]


def token_embedding(b: Builder, *, hidden: int, vocab: int, tokens: str, frozen: bool = False) -> tuple[str, str]:
    """(embedded tokens, the table [vocab, hidden])."""
    with b.scope("embedding"):
        table = b.weight((vocab, hidden), fan_in=hidden, frozen=frozen)
        return b.node("Gather", table, tokens, axis=0, name="tokens"), table


def language_head(b: Builder, x: str, *, table: str = "", hidden: int, vocab: int, frozen: bool = False) -> str:
    """Scores [batch, tokens, vocab]: a product with the embedding `table` turned round, or with a matrix of its own."""
    with b.scope("head"):
        if table:
            return b.node("MatMul", x, b.node("Transpose", table, perm=[1, 0]))
        return b.dense(x, hidden, vocab, bias=False, frozen=frozen)


def gpt(
    *,
    layers: int = 12,
    hidden: int = 768,
    heads: int = 12,
    seq_len: int = 1024,
    vocab: int = 50257,
    ffn: int | None = None,
    positions: str = "learned",
    bias: bool = True,
    tied: bool = True,
    attention: AttentionKind = "fused",
    dropout: float = 0.0,
    activation: str = "Gelu",
    seed: int | None = None,
    name: str = "gpt",
) -> ModelProto:
    """A causal language model: input "tokens" [batch, seq_len], output "logits" [batch, seq_len, vocab].

    ffn        width of the perceptrons; 4 * hidden unless given
    positions  "learned", "alibi" or "none"
    bias       whether dense layers and normalisations have biases
    tied       whether the output's matrix is the embedding
    dropout    after the embedding and each part, and of the scores where attention is unfused
    """
    need("layers", layers, layers > 0, "at least one layer")
    need("positions", positions, positions in ("learned", "alibi", "none"), "learned, alibi or none")
    split = Heads.of(hidden, heads)
    b = Builder(name=name, seed=seed)
    tokens = b.input("tokens", seq_len, dtype=TensorProto.INT64)
    x, table = token_embedding(b, hidden=hidden, vocab=vocab, tokens=tokens)
    if positions == "learned":
        x = b.node("Add", x, b.weight((seq_len, hidden), fan_in=hidden, name="embedding.positions"))
    x = b.dropout(x, dropout)
    slope = alibi(b, heads, seq_len) if positions == "alibi" else ""
    for layer in range(layers):
        with b.scope(f"layers.{layer}"):
            with b.scope("attention"):
                with b.scope("norm"):
                    y = layer_norm(b, x, hidden, bias=bias)
                parts = []
                for part in ("q", "k", "v"):
                    with b.scope(part):
                        parts.append(b.dense(y, hidden, hidden, bias=bias))
                q, k, v = parts
                y = attend(
                    b,
                    q,
                    k,
                    v,
                    heads=split,
                    queries=seq_len,
                    keys=seq_len,
                    kind=attention,
                    causal=True,
                    bias=slope,
                    dropout=dropout,
                )
                with b.scope("out"):
                    y = b.dense(y, hidden, hidden, bias=bias)
                x = b.node("Add", x, b.dropout(y, dropout), name="sum")
            with b.scope("mlp"):
                with b.scope("norm"):
                    y = layer_norm(b, x, hidden, bias=bias)
                y = feed_forward(b, y, hidden, ffn or 4 * hidden, bias=bias, activation=activation)
                x = b.node("Add", x, b.dropout(y, dropout), name="sum")
    with b.scope("norm"):
        x = layer_norm(b, x, hidden, bias=bias)
    logits = language_head(b, x, table=table if tied else "", hidden=hidden, vocab=vocab)
    return b.model(logits=(logits, (seq_len, vocab)))


def mpt(
    *,
    layers: int = 32,
    hidden: int = 4096,
    heads: int = 32,
    seq_len: int = 2048,
    vocab: int = 50368,
    ffn: int | None = None,
    positions: str = "alibi",
    bias: bool = False,
    attention: AttentionKind = "fused",
    seed: int | None = None,
    name: str = "mpt",
) -> ModelProto:
    """An MPT: :func:`gpt` whose positions are linear biases, without biases elsewhere; 6.65 billion parameters by default.

    The published throughputs of this family were measured with `positions` "learned" and `bias`.
    """
    return gpt(
        layers=layers,
        hidden=hidden,
        heads=heads,
        seq_len=seq_len,
        vocab=vocab,
        ffn=ffn,
        positions=positions,
        bias=bias,
        attention=attention,
        seed=seed,
        name=name,
    )

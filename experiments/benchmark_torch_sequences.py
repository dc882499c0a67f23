"""The zoo's perceptron and transformers as PyTorch modules, for the benchmark's baselines.

Layers are made in the zoo's order, so that weights can be handed over one after the other. Attention is PyTorch's own kernel,
``scaled_dot_product_attention``. Nothing of PyTorch is imported before a network is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

__all__ = ["SEQUENCES"]


def _mlp(*, widths: Sequence[int]) -> Any:
    from torch import nn

    layers: list[Any] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _attention(width: int, heads: int, *, causal: bool = False) -> Any:
    from torch import nn
    from torch.nn import functional

    class Attention(nn.Module):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

        def forward(self, x: Any, keep: Any = None) -> Any:
            q, k, v = (p(x).unflatten(-1, (heads, -1)).transpose(1, 2) for p in (self.q, self.k, self.v))
            y = functional.scaled_dot_product_attention(q, k, v, attn_mask=keep, is_causal=causal)
            return self.out(y.transpose(1, 2).flatten(2))

    return Attention()


def _perceptron(width: int) -> Any:
    from torch import nn

    return nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


def _gpt_blocks(*, layers: int = 4, width: int = 512, heads: int = 8, tokens: int = 256) -> Any:
    from torch import nn

    class Block(nn.Module):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.attention = nn.LayerNorm(width), _attention(width, heads, causal=True)
            self.norm2, self.perceptron = nn.LayerNorm(width), _perceptron(width)

        def forward(self, x: Any) -> Any:
            x = x + self.attention(self.norm1(x))
            return x + self.perceptron(self.norm2(x))

    return nn.Sequential(*(Block() for _ in range(layers)), nn.LayerNorm(width))


def _bert(
    *,
    layers: int = 24,
    hidden: int = 1024,
    heads: int = 16,
    seq_len: int = 512,
    vocab: int = 30522,
    max_positions: int = 512,
    dropout: float = 0.0,
    pretraining: bool = False,
) -> Any:
    from torch import nn

    assert not dropout, "masks of dropout would differ from ours"
    assert not pretraining, "the encoder alone is compared"
    eps = 1e-12

    class Layer(nn.Module):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.norm1 = _attention(hidden, heads), nn.LayerNorm(hidden, eps=eps)
            self.perceptron, self.norm2 = _perceptron(hidden), nn.LayerNorm(hidden, eps=eps)

        def forward(self, x: Any, keep: Any) -> Any:
            x = self.norm1(x + self.attention(x, keep))
            return self.norm2(x + self.perceptron(x))

    class Bert(nn.Module):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.words, self.segments = nn.Embedding(vocab, hidden), nn.Embedding(2, hidden)
            self.positions = nn.Embedding(max_positions, hidden)
            self.norm = nn.LayerNorm(hidden, eps=eps)
            self.layers = nn.ModuleList(Layer() for _ in range(layers))

        def forward(self, tokens: Any, segments: Any, mask: Any) -> Any:
            x = self.words(tokens) + self.segments(segments) + self.positions.weight[:seq_len]
            x, keep = self.norm(x), mask[:, None, None, :] > 0
            for layer in self.layers:
                x = layer(x, keep)
            return x

    return Bert()


SEQUENCES: Mapping[str, Callable[..., Any]] = {"bert": _bert, "gpt_blocks": _gpt_blocks, "mlp": _mlp}
"""Functions of a network's hyper-parameters by its name in the zoo; each returns a module in training mode."""

"""Sizes of published transformers by name, for rows that do not give them: from the models' config.json or papers, recalled.

A slice of a network ("12-layer slice") gives its layers itself: columns of the row come first.

>>> known("Qwen3-30B-A3B")["experts"], known("LLAMA3.1_405B")["ffn"], known("nothing")
(128, 53248, {})
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["known"]


def _sizes(
    layers: int, hidden: int, heads: int, ffn: int = 0, kv_heads: int = 0, vocab: int = 0, **more: int
) -> Mapping[str, int]:
    said = {
        "layers": layers,
        "hidden": hidden,
        "heads": heads,
        "ffn": ffn,
        "kv_heads": kv_heads,
        "vocab": vocab,
        **more,
    }
    return MappingProxyType({name: size for name, size in said.items() if size})


# The first pattern that a name in small letters, its separators gone, has.
_KNOWN: tuple[tuple[str, Mapping[str, int]], ...] = (
    # mixtures of experts: `ffn` is that of an expert
    (r"mixtral8x22b", _sizes(56, 6144, 48, 16384, 8, 32768, experts=8, top_k=2)),
    (r"mixtral", _sizes(32, 4096, 32, 14336, 8, 32000, experts=8, top_k=2)),
    (r"qwen3?235b", _sizes(94, 4096, 64, 1536, 4, 151936, experts=128, top_k=8, head_width=128)),
    (r"qwen3?30b", _sizes(48, 2048, 32, 768, 4, 151936, experts=128, top_k=8, head_width=128)),
    (r"gptoss120b", _sizes(36, 2880, 64, 2880, 8, 201088, experts=128, top_k=4, head_width=64)),
    (r"gptoss", _sizes(24, 2880, 64, 2880, 8, 201088, experts=32, top_k=4, head_width=64)),
    (
        r"deepseek(v3|r1)",
        _sizes(61, 7168, 128, 2048, 0, 129280, experts=256, top_k=8, shared_ffn=2048, dense_ffn=18432, dense_layers=3),
    ),
    (
        r"deepseekv2lite",
        _sizes(27, 2048, 16, 1408, 0, 102400, experts=64, top_k=6, shared_ffn=2816, dense_ffn=10944, dense_layers=1),
    ),
    (
        r"deepseek",
        _sizes(60, 5120, 128, 1536, 0, 102400, experts=160, top_k=6, shared_ffn=3072, dense_ffn=12288, dense_layers=1),
    ),
    (
        r"kimik2",
        _sizes(61, 7168, 64, 2048, 0, 163840, experts=384, top_k=8, shared_ffn=2048, dense_ffn=18432, dense_layers=1),
    ),
    # Llama and its kind
    (r"llama3\d?405b", _sizes(126, 16384, 128, 53248, 8, 128256)),
    (r"llama3\d?70b", _sizes(80, 8192, 64, 28672, 8, 128256)),
    (r"llama3\d?8b", _sizes(32, 4096, 32, 14336, 8, 128256)),
    (r"llama3\d?3b", _sizes(28, 3072, 24, 8192, 8, 128256)),
    (r"llama3\d?1b", _sizes(16, 2048, 32, 8192, 8, 128256)),
    (r"llama2?70b", _sizes(80, 8192, 64, 28672, 8, 32000)),
    (r"llama6[56]b", _sizes(80, 8192, 64, 22016, 64, 32000)),
    (r"llama3[03]b", _sizes(60, 6656, 52, 17920, 52, 32000)),
    (r"llama2?13b", _sizes(40, 5120, 40, 13824, 40, 32000)),
    (r"llama2?7b", _sizes(32, 4096, 32, 11008, 32, 32000)),
    (r"mistral7b", _sizes(32, 4096, 32, 14336, 8, 32000)),
    (r"qwen2?5?72b", _sizes(80, 8192, 64, 29568, 8, 152064)),
    (r"qwen2?5?32b", _sizes(64, 5120, 40, 27648, 8, 152064)),
    (r"qwen2?5?14b", _sizes(48, 5120, 40, 13824, 8, 152064)),
    (r"qwen2?5?7b", _sizes(28, 3584, 28, 18944, 4, 152064)),
    # GPT and its kind
    (r"gpt3.*175b", _sizes(96, 12288, 96)),
    (r"bloom", _sizes(70, 14336, 112, vocab=250880)),
    (r"(opt|gpt3)_?66b", _sizes(64, 9216, 72)),
    (r"(opt|gpt3)_?30b", _sizes(48, 7168, 56)),
    (r"(opt|gpt3)_?13b", _sizes(40, 5120, 40)),
    (r"(opt|gpt3)_?67b", _sizes(32, 4096, 32)),
    (r"(opt|gpt3)_?27b?$", _sizes(32, 2560, 32)),
    (r"(opt|gpt3)_?13$", _sizes(24, 2048, 32)),
    (r"gpt2xl", _sizes(48, 1600, 25, vocab=50257)),
    (r"gpt2large", _sizes(36, 1280, 20, vocab=50257)),
    (r"gpt2medium", _sizes(24, 1024, 16, vocab=50257)),
    (r"gpt2$", _sizes(12, 768, 12, vocab=50257)),
    (r"mpt125m", _sizes(12, 768, 12)),
    (r"mpt350m", _sizes(24, 1024, 16)),
    (r"mpt760m", _sizes(24, 1536, 12)),
    (r"mpt1b", _sizes(24, 2048, 16)),
    (r"mpt3b", _sizes(32, 2560, 20)),
    (r"mpt7b", _sizes(32, 4096, 32)),
    (r"mpt13b", _sizes(40, 5120, 40)),
    (r"mpt30b", _sizes(48, 7168, 56)),
    (r"mpt70b", _sizes(80, 8192, 64)),
    # T5 and vision
    (r"t511b", _sizes(24, 1024, 128, 65536, vocab=32128)),
    (r"t53b", _sizes(24, 1024, 32, 16384, vocab=32128)),
    (r"t5large", _sizes(24, 1024, 16, 4096, vocab=32128)),
    (r"t5base|^t5$", _sizes(12, 768, 12, 3072, vocab=32128)),
    (r"t5small", _sizes(6, 512, 8, 2048, vocab=32128)),
    (r"vith", _sizes(32, 1280, 16)),
    (r"vitl", _sizes(24, 1024, 16)),
    (r"vit", _sizes(12, 768, 12)),
)


def known(model: str) -> Mapping[str, int]:
    """What is known of the model of this name; empty where nothing is."""
    name = re.sub(r"[^a-z0-9]+", "", model.lower())
    return next((sizes for pattern, sizes in _KNOWN if re.search(pattern, name)), {})

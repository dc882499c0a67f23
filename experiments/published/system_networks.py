"""The network of a row: which of :mod:`hpdlf.models.zoo`, with which hyper-parameters, and what a sample of it is.

The name decides the family (:data:`FAMILIES`), columns and note its sizes, and what neither says is the family's own default, with
its source beside it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import ModelError
from .system_cases import Case
from .system_models import known
from .system_text import Dimensions, dimensions

__all__ = ["FAMILIES", "LORA_RANK", "MLPERF_BERT_PACKED", "MLPERF_BERT_TOKENS", "Network", "network_of"]

# Low-rank adapters of MLPerf's Llama 2: rank 16 on attention (rules of the benchmark, recalled). Stacks compute queries, keys and
# values by one product, which has one adapter: here that of the queries stands for it.
LORA_RANK, LORA_ON = 16, ("q", "out")
# MLPerf's BERT pretrains on sequences of up to 512 tokens, about half of which are padding. From round v1.0 on NVIDIA's stacks
# compute without the padding: as long a step as one of sequences of this many tokens. Others pack two into one of 512.
MLPERF_BERT_TOKENS, MLPERF_BERT_PACKED = 256, 2
# A sequence of a language model whose row does not say it.
DEFAULT_TOKENS = 2048
# A sentence pair of WMT'14 English-German in subwords: about 30 tokens on either side (recalled).
WMT_TOKENS = 32
# Widths of the perceptrons of Llama 3 by hidden size, for slices and other sizes (config.json of the models, recalled).
LLAMA3_FEED_FORWARD = {2048: 8192, 3072: 8192, 4096: 14336, 8192: 28672, 16384: 53248}


@dataclass(frozen=True, kw_only=True)
class Network:
    """name        of :data:`hpdlf.models.zoo.NETWORKS`
    hyper       its hyper-parameters, as sorted pairs
    family      the key of :data:`FAMILIES`
    language    whether it is a transformer over text
    tokens      that a sample counts in the source's tokens per second; None for images
    packed      samples of the source that one of ours holds
    optimizer   that trains it
    loss        appended by the importer; None where the network brings its own
    blocks      layers that a pipeline deals out
    """

    name: str
    hyper: tuple[tuple[str, Any], ...]
    family: str
    language: bool
    tokens: int | None
    packed: int
    optimizer: str
    loss: str | None
    blocks: int


def network_of(case: Case) -> Network:
    """The network of a row.

    Raises:
        ModelError: no family has such a name, or sizes are missing that no default can stand for.
    """
    name = case.model.lower()
    for family, (pattern, make) in FAMILIES.items():
        if re.search(pattern, name):
            return make(case, dimensions(case), family)
    raise ModelError(f"there is no network for '{case.model}': the families are {', '.join(FAMILIES)}.")


def _network(family: str, name: str, *, language: bool = True, tokens: int | None = None, packed: int = 1,
             optimizer: str = "adam", loss: str | None = "softmax_xent", blocks: int = 1, **hyper: Any) -> Network:  # fmt: skip
    said = tuple(sorted((key, value) for key, value in hyper.items() if value is not None))
    return Network(
        name=name, hyper=said, family=family, language=language, tokens=tokens, packed=packed,
        optimizer=optimizer, loss=loss, blocks=blocks
    )  # fmt: skip


def _sizes(case: Case) -> dict[str, Any]:
    """Layers, hidden size, heads, sequence and vocabulary of a transformer: the row's, else those of the published model; sequences
    of 2,048 tokens where the row says none.

    Raises:
        ModelError: one of them is missing (the vocabulary apart).
    """
    sizes: dict[str, Any] = {"seq_len": case.seq_len or DEFAULT_TOKENS}
    for key in ("layers", "hidden", "heads"):
        sizes[key] = getattr(case, key) or known(case.model).get(key)
    if missing := [key for key, value in sizes.items() if not value]:
        raise ModelError(f"{case.model}: the row does not say {', '.join(missing)}.")
    if vocab := case.vocab or known(case.model).get("vocab"):
        sizes["vocab"] = vocab
    return sizes


def _attention(case: Case) -> str:
    """Whether one kernel computes attention: where the row says so, and in stacks of 2023 and later; before, frameworks computed
    scores, softmax and the sum over values one by one.
    """
    if case.attention:
        return "unfused" if case.attention == "unfused" else "fused"
    return (
        "fused"
        if re.search(r"nemo|bridge|torchtitan|maxtext|2\.[89]\.|composer", case.framework.lower())
        else "unfused"
    )


def _dropout(case: Case) -> float:
    """0.1 for the language models of 2018 to 2022 while they train, whose scripts had it by default; later ones have none."""
    old = re.search(r"^megatron(-deepspeed)?( 20\d\d.*)?$|^oneflow|^$", case.framework.lower())
    return 0.1 if old and _attention(case) == "unfused" and case.measured_quantity != "inference_latency" else 0.0


def _gpt(case: Case, said: Dimensions, family: str) -> Network:
    """Learned positions, embedding tied to the output. 51,200 words (Megatron's padded vocabulary) unless the row says."""
    sizes = {"vocab": 51200, **_sizes(case)}
    return _network(
        family, "gpt", tokens=sizes["seq_len"], blocks=sizes["layers"], ffn=said.feed_forward, attention=_attention(case),
        dropout=_dropout(case), positions="alibi" if family == "bloom" else "learned", **sizes,
    )  # fmt: skip


def _mpt(case: Case, said: Dimensions, family: str) -> Network:
    """MPT as its benchmarks ran it: learned positions of the sequence's length and biases, as its parameter counts tell."""
    sizes = {"vocab": 50368, **_sizes(case)}
    return _network(
        family, "gpt", tokens=sizes["seq_len"], blocks=sizes["layers"], attention=_attention(case), dropout=0.0, **sizes
    )  # fmt: skip


def _llama(case: Case, said: Dimensions, family: str) -> Network:
    """Grouped queries over 8 key-value heads in Llama 3 and in the largest of Llama 2; perceptrons as wide as published."""
    third = re.search(r"llama[-_ ]?[34]", case.model.lower()) is not None
    sizes = {"vocab": 128256 if third else 32000, **_sizes(case)}
    kind = known(case.model)
    grouped = third or sizes["hidden"] >= 8192
    lora = "lora" in case.model.lower()
    return _network(
        family, "llama", tokens=sizes["seq_len"], blocks=sizes["layers"],
        ffn=said.feed_forward or kind.get("ffn") or (LLAMA3_FEED_FORWARD if third else {}).get(sizes["hidden"]) or _gated(sizes["hidden"]),
        kv_heads=said.kv_heads or kind.get("kv_heads") or (8 if grouped else sizes["heads"]), rope_base=500000.0 if third else 10000.0,
        qkv_bias="qwen" in case.model.lower(), tied=third and sizes["hidden"] <= 3072,
        lora_rank=LORA_RANK if lora else 0, lora_on=LORA_ON if lora else None,
        lora_dropout=0.1 if lora else 0.0, **sizes,
    )  # fmt: skip


def _gated(hidden: int) -> int:
    """Two thirds of four times the hidden size, rounded up to a multiple of 256 (Touvron et al. 2023)."""
    return -(-(8 * hidden // 3) // 256) * 256


def _bert(case: Case, said: Dimensions, family: str) -> Network:
    """The published sizes where the row says none; 20, 76 or 80 masked words a sequence, as the recipes have them."""
    large = "base" not in case.model.lower()
    layers, hidden = case.layers or (24 if large else 12), case.hidden or (1024 if large else 768)
    heads, length = case.heads or hidden // 64, case.seq_len or 512
    mlperf = bool(case.round) and length == 512
    words = {128: 20, 512: 76 if mlperf else 80}.get(length, max(1, int(0.15 * length)))
    unpadded = mlperf and case.round >= "v1" and re.search(r"pytorch|^$", case.framework.lower()) is not None
    packed = MLPERF_BERT_PACKED if mlperf and case.round >= "v1" and not unpadded else 1
    computed = MLPERF_BERT_TOKENS if unpadded else length
    return _network(
        family, "bert", loss=None, optimizer="lamb" if large else "adam", tokens=length, packed=packed, blocks=layers, layers=layers,
        hidden=hidden, heads=heads, seq_len=computed, max_positions=max(512, computed), vocab=case.vocab or 30522,
        predictions=max(1, words * computed // length), padding=not unpadded, attention="fused" if unpadded else "unfused",
    )  # fmt: skip


def _mixture(case: Case, said: Dimensions, family: str) -> Network:
    """Sizes of experts from the note, else those of the published model, else Mixtral's."""
    sizes, kind = {"vocab": 32000, **_sizes(case)}, known(case.model)
    return _network(
        family, "mixtral", tokens=sizes["seq_len"], blocks=sizes["layers"], kv_heads=said.kv_heads or kind.get("kv_heads") or 8,
        head_width=said.head_dim or kind.get("head_width"), experts=said.experts or kind.get("experts"),
        top_k=said.top_k or kind.get("top_k"), ffn=said.expert_feed_forward or said.feed_forward or kind.get("ffn"),
        shared_ffn=said.shared_feed_forward, capacity_factor=said.capacity_factor, **sizes,
    )  # fmt: skip


def _deepseek(case: Case, said: Dimensions, family: str) -> Network:
    """Latent attention; sizes of experts from the note, else those of the published model."""
    sizes, kind = {"vocab": 102400, **_sizes(case)}, known(case.model)
    return _network(
        family, "deepseek_v2", tokens=sizes["seq_len"], blocks=sizes["layers"], head_width=said.head_dim, rope_width=said.rotary_dim,
        q_rank=said.q_lora, kv_rank=said.kv_lora, ffn=said.expert_feed_forward or kind.get("ffn"),
        experts=said.experts or kind.get("experts"), top_k=said.top_k or kind.get("top_k"),
        shared_ffn=said.shared_feed_forward or kind.get("shared_ffn"), dense_layers=kind.get("dense_layers"),
        dense_ffn=said.first_dense_feed_forward or kind.get("dense_ffn"), capacity_factor=said.capacity_factor, **sizes,
    )  # fmt: skip


def _t5(case: Case, said: Dimensions, family: str) -> Network:
    """As many decoder layers as encoder layers, which `layers` counts."""
    sizes = {"vocab": 32128, **_sizes(case)}
    return _network(
        family, "t5", tokens=sizes["seq_len"], blocks=2 * sizes["layers"], ffn=known(case.model).get("ffn"), **sizes
    )


def _transformer(case: Case, said: Dimensions, family: str) -> Network:
    """Encoder and decoder of 6 layers each (`layers` counts both) over sentence pairs."""
    return _network(
        family, "transformer_big" if "big" in case.model.lower() or case.round else "transformer", tokens=WMT_TOKENS, blocks=12,
        layers=case.layers // 2 if case.layers else None, hidden=case.hidden, heads=case.heads, vocab=case.vocab or 33708,
        seq_len=WMT_TOKENS,
    )  # fmt: skip


def _images(name: str, *, image: int = 224, optimizer: str = "momentum", loss: str | None = "softmax_xent",
            sized: bool = True, **hyper: Any) -> Callable[[Case, Dimensions, str], Network]:  # fmt: skip
    """A network over square images, whose edge stands in `seq_len`."""

    def make(case: Case, said: Dimensions, family: str) -> Network:
        edge = {"image": case.seq_len or image} if sized else {}
        return _network(family, name, language=False, optimizer=optimizer, loss=loss, **edge, **hyper)

    return make


def _resnet(case: Case, said: Dimensions, family: str) -> Network:
    """Version 1.5 (the stride in the 3 x 3 convolution) where the name says so, and in all of MLPerf."""
    depth = re.search(r"resne?x?t-?(\d+)", case.model.lower())
    later = "1.5" in case.model or bool(case.round)
    return _network(
        family, "resnet", language=False, optimizer="momentum", depth=int(depth[1]) if depth else case.layers or 50,
        image=case.seq_len or 224, version="1.5" if later else "1",
    )  # fmt: skip


def _vgg(case: Case, said: Dimensions, family: str) -> Network:
    depth = re.search(r"vgg[-_ ]?(\d+)", case.model.lower())
    return _network(
        family, "vgg", language=False, optimizer="momentum", depth=int(depth[1]) if depth else 16, image=case.seq_len or 224
    )  # fmt: skip


def _alexnet(case: Case, said: Dimensions, family: str) -> Network:
    """TensorFlow's benchmarks have a wider fourth convolution."""
    variant = "tf_benchmarks" if case.framework.lower().startswith("tensorflow") else "one_tower"
    return _network(
        family, "alexnet", language=False, optimizer="momentum", image=case.seq_len or 224, variant=variant
    )  # fmt: skip


def _efficientnet(case: Case, said: Dimensions, family: str) -> Network:
    size = re.search(r"b(\d)\b", case.model.lower())
    return _network(
        family, "efficientnet", language=False, optimizer="rmsprop", size=int(size[1]) if size else 0, image=case.seq_len
    )  # fmt: skip


def _vit(case: Case, said: Dimensions, family: str) -> Network:
    """The sizes of the name, the base's where it has none."""
    sizes: dict[str, Any] = {
        key: getattr(case, key) or known(case.model).get(key) for key in ("layers", "hidden", "heads")
    }
    return _network(
        family, "vit", language=False, blocks=sizes["layers"] or 12, image=case.seq_len, **sizes
    )  # fmt: skip


# By family: the pattern that its names have, and how to read its sizes. The first that fits is taken.
FAMILIES: Mapping[str, tuple[str, Callable[[Case, Dimensions, str], Network]]] = {
    "se-resnext": (r"se[-_ ]?resnext", _images("se_resnext101")),
    "retinanet": (r"retinanet", _images("retinanet", image=800, optimizer="adam", loss=None)),
    "mask r-cnn": (r"(mask|faster)[-_ ]?r-?cnn", _images("mask_rcnn", sized=False, loss=None)),
    "ssd": (r"\bssd", _images("ssd_resnet34", sized=False, loss=None)),
    "resnext": (r"resnext", _images("resnext101")),
    "resnet": (r"resnet", _resnet),
    "vgg": (r"vgg", _vgg),
    "inception": (r"inception", _images("inception_v3", image=299)),
    "alexnet": (r"alexnet", _alexnet),
    "efficientnet": (r"efficientnet", _efficientnet),
    "mobilenet": (r"mobilenet", _images("mobilenet_v2")),
    "vit": (r"\bvit\b|vision transformer", _vit),
    "u-net 3d": (r"3d[-_ ]?u-?net|u-?net[-_ ]?3d|nnu-?net", _images("unet3d", sized=False, loss=None)),
    "u-net": (r"u-?net", _images("unet", image=256)),
    "bert": (r"bert", _bert),
    "mpt": (r"\bmpt", _mpt),
    "bloom": (r"^bloom", _gpt),
    "deepseek": (r"deepseek|kimi", _deepseek),
    "mixture": (r"mixtral|\bmoe\b|qwen.*a\d+b|mixture|gpt[-_ ]?oss", _mixture),
    "llama": (r"llama|mistral|qwen|vicuna", _llama),
    "t5": (r"\bt5", _t5),
    "transformer": (r"transformer", _transformer),
    "gpt": (r"gpt|\bopt|mt-nlg|megatron|palm|turing", _gpt),
}

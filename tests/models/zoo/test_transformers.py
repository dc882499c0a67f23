"""Transformers: both ways of attention give the same numbers, and FLOPs are the closed forms of the papers."""

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator

from hpdlf.models.onnxpp import work
from hpdlf.models.zoo import import_network
from hpdlf.models.zoo.attention import Heads, alibi, attend
from hpdlf.models.zoo.builder import Builder

SMALL = {"layers": 2, "hidden": 32, "heads": 4, "seq_len": 8, "vocab": 40}
CASES = {
    "gpt": SMALL,
    "llama": {**SMALL, "kv_heads": 2, "ffn": 48},
    "bert": {**SMALL, "dropout": 0.0, "predictions": 3},
    "t5": {**SMALL, "head_width": 8, "ffn": 48, "target_len": 5},
    "transformer": {**SMALL, "dropout": 0.0, "target_len": 5},
    "mixtral": {**SMALL, "kv_heads": 2, "ffn": 48, "experts": 4, "capacity_factor": 4.0},
    "deepseek_v2": {
        **SMALL,
        **{"head_width": 8, "rope_width": 4, "value_width": 6, "q_rank": 12, "kv_rank": 10},
        **{"ffn": 16, "experts": 4, "top_k": 2, "shared_ffn": 16, "dense_ffn": 48},
    },
}


@pytest.mark.parametrize("name", CASES)
def test_fused_attention_computes_what_unfused_does(name: str, run) -> None:  # type: ignore[no-untyped-def]
    mask = {"mask": np.array([[1] * 8, [1] * 5 + [0] * 3], np.float32)} if name == "bert" else {}
    fused, unfused = (run(name, attention=kind, feeds=mask, **CASES[name]) for kind in ("fused", "unfused"))
    for output, values in fused.items():
        assert np.abs(values).max() > 0.1
        np.testing.assert_allclose(values, unfused[output], atol=2e-5)


def test_later_tokens_are_not_seen(run) -> None:  # type: ignore[no-untyped-def]
    tokens = np.arange(8)[None, :]
    other = tokens.copy()
    other[0, 5:] = 39
    for name in ("gpt", "llama", "mpt"):
        hyper = CASES["llama"] if name == "llama" else SMALL
        kind = {"attention": "unfused"}
        one, two = (run(name, samples=1, feeds={"tokens": t}, **hyper, **kind)["logits"] for t in (tokens, other))
        np.testing.assert_allclose(one[:, :5], two[:, :5], atol=1e-5)
        assert np.abs(one[:, 5:] - two[:, 5:]).max() > 0.1


@pytest.mark.parametrize("heads", [4, 6])
def test_linear_biases_are_those_of_the_paper(heads: int) -> None:
    b = Builder(name="alibi", seed=0)
    q, k, v = (b.input(n, 5, heads * 3) for n in "qkv")
    y = attend(
        b,
        q,
        k,
        v,
        heads=Heads.of(heads * 3, heads),
        queries=5,
        keys=5,
        kind="unfused",
        causal=True,
        bias=alibi(b, heads, 5),
    )
    rng = np.random.default_rng(3)
    feeds = {n: rng.standard_normal((2, 5, heads * 3), dtype=np.float32) for n in "qkv"}
    [found] = ReferenceEvaluator(b.model(y=(y, (5, heads * 3)))).run(None, feeds)
    slopes = [1 / 4, 1 / 16, 1 / 64, 1 / 256] if heads == 4 else [1 / 4, 1 / 16, 1 / 64, 1 / 256, 1 / 2, 1 / 8]
    for head, slope in enumerate(slopes):
        q, k, v = (feeds[n][:, :, 3 * head : 3 * head + 3] for n in "qkv")
        distance = np.arange(5)[:, None] - np.arange(5)[None, :]
        scores = q @ k.transpose(0, 2, 1) / np.sqrt(3) - slope * distance
        weights = np.exp(np.where(distance >= 0, scores, -np.inf))
        wanted = weights / weights.sum(-1, keepdims=True) @ v
        np.testing.assert_allclose(found[:, :, 3 * head : 3 * head + 3], wanted, atol=1e-5)


def test_rotary_positions_turn_by_distance_alone(run) -> None:  # type: ignore[no-untyped-def]
    """A sequence of one repeated token has no position but what attention tells: all its rows agree."""
    logits = run("llama", samples=1, feeds={"tokens": np.full((1, 8), 3)}, **CASES["llama"])["logits"]
    np.testing.assert_allclose(logits, np.broadcast_to(logits[:, :1], logits.shape), atol=1e-4)


@pytest.mark.parametrize("attention", ["fused", "unfused"])
def test_gpt_does_the_flops_of_the_closed_form(attention: str) -> None:
    """Narayanan et al. 2021, equation 2, forward: 24 s l h² + 4 s² l h (half where causal is used) + 2 s h V."""
    layers, h, s, vocab = 3, 64, 16, 100
    graph = import_network("gpt", layers=layers, hidden=h, heads=4, seq_len=s, vocab=vocab, attention=attention).graph
    products = [o for o in graph.operators if o.family == "matmul"]
    forward = sum(work(o, graph, batch=1, phase="forward").flops for o in products)
    pairs = s * (s + 1) / 2 if attention == "fused" else s * s
    dense = 24 * s * layers * h**2 + 2 * s * h * vocab
    assert forward == dense + 4 * pairs * layers * h
    backward = sum(work(o, graph, batch=1, phase="backward").flops for o in products)
    assert backward == 2 * dense + (2.5 if attention == "fused" else 2) * 4 * pairs * layers * h


def test_only_adapters_are_trained() -> None:
    graph = import_network("llama", **CASES["llama"], lora_rank=2, lora_on=("q", "down")).graph
    assert set(graph.parameters) == {
        f"layers.{i}.{part}.lora.{ab}" for i in range(2) for part in ("attention.q", "mlp.down") for ab in "ab"
    }
    assert graph.parameter_count == 2 * (2 * 2 * 32 + 2 * (48 + 32))
    assert "layers.0.attention.q.weight" in graph.constants
    whole = import_network("llama", **CASES["llama"]).graph
    frozen = sum(graph.tensors[c].elements(1) for c in graph.constants if c.endswith("weight"))
    assert frozen == whole.parameter_count
    product = graph.operator["layers.1.attention.k.matmul"]
    assert work(product, graph, batch=1, phase="backward_weight").flops == 0


def test_a_tied_output_is_one_parameter_and_no_copy() -> None:
    graph = import_network("gpt", **SMALL).graph
    assert sum(graph.tensors[p].elements(1) == 40 * 32 for p in graph.parameters) == 1
    assert graph.operator["head.transpose"].family == "view"
    untied = import_network("gpt", **SMALL, tied=False).graph
    assert untied.parameter_count - graph.parameter_count == 40 * 32


def test_what_no_operator_tells_to_be_trained_is_said() -> None:
    graph = import_network("bert", **{**CASES["bert"], "seq_len": 4}).graph
    assert graph.tensors["embedding.positions"].dims(1) == (512, 32)
    assert "embedding.positions" in graph.parameters
    for attention in ("fused", "unfused"):
        graph = import_network("t5", **CASES["t5"], attention=attention).graph
        assert {"encoder.relative.weight", "decoder.relative.weight"} <= set(graph.parameters)
        graph = import_network("mpt", **SMALL, attention=attention).graph
        assert all(p.endswith("weight") for p in graph.parameters)
    graph = import_network("transformer", **CASES["transformer"]).graph
    assert "waves" not in graph.parameters


def test_distances_fall_into_the_buckets_of_t5() -> None:
    from hpdlf.models.zoo.translation import _distance_buckets

    both = _distance_buckets(200, 200, both=True, buckets=32, furthest=128)
    at = {d: int(both[d + 199]) for d in (-199, -128, -20, -8, -7, -1, 0, 1, 7, 8, 128, 199)}
    assert at == {-199: 15, -128: 15, -20: 10, -8: 8, -7: 7, -1: 1, 0: 0, 1: 17, 7: 23, 8: 24, 128: 31, 199: 31}
    back = _distance_buckets(20, 20, both=False, buckets=32, furthest=128)
    assert [int(back[19 + d]) for d in (5, 0, -1, -15, -16)] == [0, 0, 1, 15, 16]

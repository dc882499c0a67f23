"""Graphs as one rank sees them, against what the papers count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from hpdlf.errors import PlanError
from hpdlf.models.onnxpp import Graph, work
from hpdlf.models.onnxpp.graph import Dim, Operator, Tensor
from hpdlf.models.plan import Strategy, localise
from hpdlf.models.plan.sharding import is_collective, shard
from hpdlf.models.zoo import import_network

Stack = Callable[..., Graph]
LAYERS, WIDTH, TOKENS, VOCAB = 2, 512, 64, 4096
# 4096 * 512 elements are worth splitting, a layer's weights of 512 * 512 as well.
SMALL: dict[str, Any] = {"layers": LAYERS, "hidden": WIDTH, "heads": 8, "seq_len": TOKENS, "vocab": VOCAB}


def exchanges(graph: Graph, direction: str) -> Counter[str]:
    """How often each collective stands in a pass."""
    return Counter(o.attributes[direction] for o in graph.operators if is_collective(o) and o.attributes[direction])


def exchanged_elements(graph: Graph, direction: str, samples: int) -> set[int]:
    """Elements of the whole tensor that each collective of a pass is about: of the larger of its sides."""
    return {
        max(graph.tensors[t].elements(samples) for t in (*o.inputs, *o.outputs))
        for o in graph.operators
        if is_collective(o) and o.attributes[direction]
    }


def elements(graph: Graph) -> int:
    return sum(graph.tensors[p].elements(1) for p in graph.parameters)


def cut(whole: Graph, local: Graph) -> dict[str, tuple[int, ...]]:
    """The local shapes of parameters that are held in parts."""
    return {p: local.tensors[p].dims(1) for p in whole.parameters if local.tensors[p] != whole.tensors[p]}


# --- tensor --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 4, 8])
def test_two_all_reduces_a_layer_and_direction(gpt_stack: Stack, size: int) -> None:
    """Shoeybi et al. 2019, section 3: one behind attention and one behind the perceptron, and their mirrors backward, each of
    batch * tokens * width elements.
    """
    graph = shard(gpt_stack(layers=LAYERS), axis="tensor", size=size)
    assert exchanges(graph, "forward") == {"all_reduce": 2 * LAYERS}
    assert exchanges(graph, "backward") == {"all_reduce": 2 * LAYERS}
    for direction in ("forward", "backward"):
        assert exchanged_elements(graph, direction, samples=3) == {3 * TOKENS * WIDTH}


def test_sequence_parallel_gathers_and_scatters_the_same_bytes() -> None:
    """Korthikanti et al. 2022, section 4.2.2: every all-reduce becomes an all-gather and a reduce-scatter of as many elements."""
    whole = import_network("gpt", **SMALL).graph
    graph = shard(whole, axis="tensor", size=4, sequence=True)
    pairs = 2 * LAYERS + 1  # with the embedding's sum forward, and what goes into the head
    assert exchanges(graph, "forward") == {"all_gather": pairs, "reduce_scatter": pairs}
    assert exchanges(graph, "backward") == {"all_gather": pairs, "reduce_scatter": pairs}
    assert exchanged_elements(graph, "forward", samples=3) == {3 * TOKENS * WIDTH}
    between = [o for o in graph.operators if o.op_type == "LayerNormalization"]
    assert {graph.tensors[o.outputs[0]].dims(1) for o in between} == {(1, TOKENS // 4, WIDTH)}


@pytest.mark.parametrize("size", [2, 4])
def test_parts_and_copies_make_the_whole(size: int) -> None:
    """Matrices and the biases of columns are cut, normalisations and the biases behind a sum are on every rank."""
    whole = import_network("gpt", **SMALL).graph
    local = shard(whole, axis="tensor", size=size)
    parts = cut(whole, local)
    in_parts = sum(whole.tensors[p].elements(1) for p in parts)
    assert size * elements(local) == in_parts + size * (elements(whole) - in_parts)
    assert {p for p in whole.parameters if len(whole.tensors[p].shape) == 2} - set(parts) == {"embedding.positions"}
    assert parts["layers.0.mlp.up.weight"] == (WIDTH, 4 * WIDTH // size)
    assert parts["layers.0.mlp.down.weight"] == (4 * WIDTH // size, WIDTH)
    assert parts["layers.0.attention.q.bias"] == (WIDTH // size,)
    assert "layers.0.mlp.down.bias" not in parts


def test_the_vocabulary_is_shared_by_embedding_and_head() -> None:
    """Shoeybi et al. 2019, section 3: the table is split by rows, scores by columns, and no rank ever has all scores."""
    whole = import_network("gpt", **SMALL).graph
    local = shard(whole, axis="tensor", size=4)
    assert local.tensors["embedding.weight"].dims(1) == (VOCAB // 4, WIDTH)
    scores = next(o for o in reversed(local.operators) if o.op_type == "MatMul")
    assert local.tensors[scores.outputs[0]].dims(2) == (2, TOKENS, VOCAB // 4)
    loss = next(o for o in local.operators if o.family == "loss")
    assert local.tensors[loss.inputs[0]].elements(2) == 2 * TOKENS * VOCAB // 4


def test_grouped_queries_are_split_by_heads() -> None:
    """Keys and values of 4 heads, queries of 8 (Llama 2): a rank of two has half of each."""
    whole = import_network("llama", **{**SMALL, "hidden": 1024}, kv_heads=4, ffn=1024).graph
    local = shard(whole, axis="tensor", size=2)
    attention = next(o for o in local.operators if o.op_type == "Attention")
    assert (attention.attributes["q_num_heads"], attention.attributes["kv_num_heads"]) == (4, 2)
    assert exchanges(local, "backward") == {"all_reduce": 2 * LAYERS + 1}


@pytest.mark.parametrize("sequence", [False, True])
def test_attention_under_a_mask_is_split_by_heads(sequence: bool) -> None:
    whole = import_network("bert", **SMALL).graph
    local = shard(whole, axis="tensor", size=4, sequence=sequence)
    softmax = [o for o in local.operators if o.op_type == "Softmax"]
    assert {local.tensors[o.outputs[0]].dims(1) for o in softmax} == {(1, 2, TOKENS, TOKENS)}
    assert "all_to_all" not in exchanges(local, "forward")


def test_convolutions_are_split_by_channels() -> None:
    """Large ones in pairs: the first by its output channels, the second by its input channels, one sum behind it."""
    whole = import_network("resnet", depth=18).graph
    local = shard(whole, axis="tensor", size=2)
    halves = [
        tuple(a // b for a, b in zip(whole.tensors[p].dims(1), shape, strict=True))
        for p, shape in cut(whole, local).items()
        if len(shape) == 4
    ]
    assert halves == [(2, 1, 1, 1), (1, 2, 1, 1)] * (len(halves) // 2)
    assert exchanges(local, "forward")["all_reduce"] == len(halves) // 2 > 2


# --- context -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["gpt", "llama"])
def test_context_ranks_gather_keys_and_values(network: str) -> None:
    """Each layer's keys and values, forward; their gradients are scattered back. Parameters are whole."""
    whole = import_network(network, **SMALL).graph
    local = shard(whole, axis="context", size=4)
    assert cut(whole, local) == {}
    assert exchanges(local, "forward") == {"all_gather": 2 * LAYERS}
    assert exchanges(local, "backward") == {"reduce_scatter": 2 * LAYERS}
    assert exchanged_elements(local, "forward", samples=1) == {TOKENS * WIDTH}
    assert local.tensors[whole.inputs[0]].dims(1) == (1, TOKENS // 4)


@pytest.mark.parametrize("size", [2, 4, 8])
def test_context_ranks_share_the_arithmetic_of_attention(size: int) -> None:
    """Queries of a causal model see half of all keys on average, on every rank (striped as in Llama 3, section 3.3.2)."""
    whole = import_network("gpt", **SMALL).graph
    local = shard(whole, axis="context", size=size)
    flops = [
        sum(work(o, g, batch=2, phase=phase).flops for o in g.operators if o.op_type == "Attention")
        for g in (whole, local)
        for phase in ("forward", "backward")
    ]
    assert flops[2] == pytest.approx(flops[0] / size, rel=1e-3)
    assert flops[3] == pytest.approx(flops[1] / size, rel=1e-3)


def test_context_and_tensor_share_attention() -> None:
    """A rank gathers the keys and values of its own heads alone."""
    whole = import_network("gpt", **SMALL).graph
    local = localise(whole, Strategy(batch=2, context=2, tensor=2)).graph
    gathered = [o for o in local.operators if is_collective(o) and o.attributes["axis"] == "context"]
    assert {local.tensors[o.outputs[0]].elements(1) for o in gathered} == {TOKENS * WIDTH // 2}


# --- experts -------------------------------------------------------------------------------------------------------------

EXPERTS = 8


@pytest.fixture(scope="module")
def mixture() -> Graph:
    """`rows` a sample for each of 8 experts, two products with one matrix each, and a loss."""
    rows = Dim(per_sample=4)
    shapes: dict[str, tuple[Dim, ...]] = {
        "x": (Dim(EXPERTS), rows, Dim(16)),
        "up": (Dim(EXPERTS), Dim(16), Dim(32)),
        "down": (Dim(EXPERTS), Dim(32), Dim(16)),
        "scale": (Dim(16),),
        "scaled": (Dim(EXPERTS), rows, Dim(16)),
        "h": (Dim(EXPERTS), rows, Dim(32)),
        "a": (Dim(EXPERTS), rows, Dim(32)),
        "y": (Dim(EXPERTS), rows, Dim(16)),
        "loss": (),
    }
    steps = [
        ("scaling", "Mul", "elementwise", ("x", "scale"), "scaled"),
        ("product1", "MatMul", "matmul", ("scaled", "up"), "h"),
        ("relu", "Relu", "elementwise", ("h",), "a"),
        ("product2", "MatMul", "matmul", ("a", "down"), "y"),
        ("mean", "ReduceMean", "reduction", ("y",), "loss"),
    ]
    return Graph(
        name="mixture",
        opset=20,
        operators=tuple(
            Operator(name=name, op_type=op, family=family, inputs=given, outputs=(made,))
            for name, op, family, given, made in steps
        ),
        tensors={name: Tensor(name=name, dtype="float32", shape=shape) for name, shape in shapes.items()},
        inputs=("x",),
        targets=(),
        outputs=("y",),
        loss="loss",
        parameters=("up", "down", "scale"),
        state={},
        constants=(),
    )


def test_rows_travel_to_their_experts_and_back(mixture: Graph) -> None:
    """Two all-to-alls forward, the same backward (Lepikhin et al. 2020); a rank has all ranks' rows for its own experts."""
    local = localise(mixture, Strategy(batch=4, data=4, expert=4))
    assert local.experts == {"up", "down"}
    assert exchanges(local.graph, "forward") == exchanges(local.graph, "backward") == {"all_to_all": 2}
    assert local.graph.tensors["up"].dims(1) == (EXPERTS // 4, 16, 32)
    assert local.graph.tensors["h"].dims(1) == (EXPERTS // 4, 4 * 4, 32)
    assert local.graph.tensors["h"].elements(1) == mixture.tensors["h"].elements(1)


def test_a_mixture_of_experts_sends_rows_twice_a_layer() -> None:
    """Dispatch and combine (Lepikhin et al. 2021): all-to-alls of experts * capacity rows, whatever the gates."""
    whole = import_network("mixtral", **SMALL, kv_heads=8, ffn=1024, experts=8, top_k=2).graph
    local = localise(whole, Strategy(batch=4, data=4, expert=4))
    assert exchanges(local.graph, "forward") == exchanges(local.graph, "backward") == {"all_to_all": 2 * LAYERS}
    rows = TOKENS * 2  # of a sample: top_k of every token
    assert exchanged_elements(local.graph, "forward", samples=3) == {3 * rows * WIDTH}
    assert len(local.experts) == 3 * LAYERS


# --- what cannot be or does not divide -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("axis", "reason"),
    [("tensor", "no product that tensor"), ("context", "no sequence"), ("expert", "no experts")],
)
def test_a_graph_with_nothing_to_split_is_refused_in_words(
    make_chain: Callable[..., Graph], axis: Any, reason: str
) -> None:
    with pytest.raises(PlanError, match=f"chain has {reason}.*Leave `{axis}` at 1"):
        shard(make_chain(3), axis=axis, size=2)


def test_what_does_not_divide_is_padded() -> None:
    """A vocabulary of 4,097 words over 4 ranks: 1,025 rows each."""
    whole = import_network("gpt", **{**SMALL, "vocab": VOCAB + 1}).graph
    local = shard(whole, axis="tensor", size=4)
    assert local.tensors["embedding.weight"].dims(1) == (VOCAB // 4 + 1, WIDTH)


def test_one_rank_sees_the_graph_itself(gpt_stack: Stack) -> None:
    graph = gpt_stack(layers=1)
    assert shard(graph, axis="tensor", size=1) is graph

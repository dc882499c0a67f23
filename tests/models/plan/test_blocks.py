"""The parts that a network is a chain of, where one can count them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hpdlf.models.onnxpp import Graph
from hpdlf.models.plan.blocks import find_blocks, waists
from hpdlf.models.plan.crossing import crossing_tensors
from hpdlf.models.zoo import import_network

MakeChain = Callable[..., Graph]
SMALL: dict[str, Any] = {"hidden": 64, "heads": 4, "seq_len": 16, "vocab": 128}


def names(graph: Graph, first: int, last: int) -> list[str]:
    """The parts of a block's names that the layer does not tell apart."""
    return [".".join(o.name.split(".")[2:]).rstrip("_0123456789") for o in graph.operators[first:last]]


@pytest.mark.parametrize("layers", [2, 3, 6])
@pytest.mark.parametrize("network", ["gpt", "llama", "mpt", "bert"])
def test_a_transformer_has_a_block_a_layer(network: str, layers: int) -> None:
    graph = import_network(network, layers=layers, **SMALL).graph
    blocks = find_blocks(graph)
    assert len(blocks) == layers
    parts = [names(graph, a, b) for a, b in zip(blocks.borders, blocks.borders[1:], strict=False)]
    assert all(part == parts[0] for part in parts)
    assert graph.operators[blocks.starts[0]].name.startswith("layers.0.")
    assert graph.operators[blocks.end - 1].name.startswith(f"layers.{layers - 1}.")


def test_blocks_of_embedded_inputs(gpt_stack: Callable[..., Graph]) -> None:
    """The input of the first layer is added behind its attention: it crosses like what is computed."""
    graph = gpt_stack(layers=3, width=64, tokens=16)
    assert len(find_blocks(graph)) == 3
    assert find_blocks(graph).starts[0] == 0


def test_a_residual_network_has_blocks_of_its_own_in_every_stage() -> None:
    """16 residual blocks (He et al. 2016, table 1), the parts of the stem and the classifier; all operators belong to one."""
    graph = import_network("resnet50").graph
    blocks = find_blocks(graph)
    sums = [i for i, o in enumerate(graph.operators) if o.op_type == "Add"]
    within = [sum(a <= i < b for i in sums) for a, b in zip(blocks.borders, blocks.borders[1:], strict=False)]
    assert sum(within) == 16
    assert max(within) == 1
    assert blocks.borders[0] == 0
    assert blocks.end == len(graph.operators)


def test_a_chain_is_narrow_everywhere(make_chain: MakeChain) -> None:
    graph = make_chain(6)
    assert waists(graph) == (1, 2, 3, 4, 5, 6)
    assert len(find_blocks(graph)) == 6


def test_one_tensor_crosses_a_waist() -> None:
    graph = import_network("gpt", layers=2, **SMALL).graph
    crossing = crossing_tensors(graph)
    assert all(len(crossing[at]) == 1 for at in waists(graph))
    inside = [i for i, o in enumerate(graph.operators) if o.op_type == "Attention"]
    assert not set(inside) & set(waists(graph))

"""Graphs that are made for a test: chains of equal layers, whose times and bytes one can work out on paper."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from hpdlf.models.onnxpp import Graph
from hpdlf.models.onnxpp.graph import Dim, Operator, Tensor

MakeChain = Callable[..., Graph]


@pytest.fixture(scope="session")
def make_chain() -> MakeChain:
    """make_chain(layers, width, tied={layer: layer whose weight it shares}): so many square matrix products, then a loss."""

    def make(layers: int, width: int = 4, tied: Mapping[int, int] | None = None) -> Graph:
        tied = tied or {}
        batch, square = (Dim(per_sample=1), Dim(width)), (Dim(width), Dim(width))
        weight = {i: f"w{tied.get(i, i)}" for i in range(layers)}
        shapes = {"h0": batch, "y": (Dim(per_sample=1),), "loss": ()}
        shapes |= {f"h{i + 1}": batch for i in range(layers)} | dict.fromkeys(weight.values(), square)
        products = [
            Operator(
                name=f"product{i}",
                op_type="MatMul",
                family="matmul",
                inputs=(f"h{i}", weight[i]),
                outputs=(f"h{i + 1}",),
            )
            for i in range(layers)
        ]
        loss = Operator(
            name="loss", op_type="SoftmaxCrossEntropyLoss", family="loss", inputs=(f"h{layers}", "y"), outputs=("loss",)
        )
        return Graph(
            name="chain",
            opset=20,
            operators=(*products, loss),
            tensors={
                name: Tensor(name=name, dtype="int64" if name == "y" else "float32", shape=shape)
                for name, shape in shapes.items()
            },
            inputs=("h0",),
            targets=("y",),
            outputs=(f"h{layers}",),
            loss="loss",
            parameters=tuple(dict.fromkeys(weight.values())),
            state={},
            constants=(),
        )

    return make


@pytest.fixture(scope="session")
def gpt_stack() -> MakeChain:
    """gpt_stack(layers, width, tokens, heads=8): transformer blocks with attention spelt out, between embedded tokens and a loss."""
    from hpdlf.models.onnxpp import import_model
    from hpdlf.models.zoo import gpt_blocks

    def make(layers: int = 2, width: int = 512, tokens: int = 64, heads: int = 8) -> Graph:
        model = gpt_blocks(layers=layers, width=width, tokens=tokens, heads=heads, seed=None)
        content = model.SerializeToString()
        return import_model("gpt_blocks.onnx", loss="mse", without_weights=True, content=content).graph

    return make


@pytest.fixture(scope="session")
def lower_network() -> Callable[..., Any]:
    """lower_network(graph, optimizer="adam", **strategy): the program of a step, cut by layers."""
    from hpdlf.hwprofiles import load_cluster
    from hpdlf.models.cost import CostModel
    from hpdlf.models.plan import Strategy
    from hpdlf.models.program import Program
    from hpdlf.sim.cutting import Cutter

    cluster, model = load_cluster("dgx-a100:16"), CostModel.default()
    cutters: dict[int, Cutter] = {}

    def make(graph: Graph, *, optimizer: str | None = "adam", **fields: Any) -> Program:
        cutter = cutters.setdefault(id(graph), Cutter(graph, cluster, model))
        return cutter.lower(Strategy(**{"cut": "layers", **fields}), optimizer=optimizer)

    return make

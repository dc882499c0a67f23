"""Mixtures of experts: what the graph computes is the sum of the chosen experts, and shapes follow the capacity."""

import numpy as np
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from hpdlf.models.onnxpp import work
from hpdlf.models.zoo import import_network
from hpdlf.models.zoo.builder import Builder
from hpdlf.models.zoo.moe import mixture

HIDDEN, FFN, EXPERTS, TOKENS = 6, 5, 4, 7


def mixed(top_k: int, capacity_factor: float) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """(input, output, weights) of one mixture."""
    b = Builder(name="moe", seed=2)
    y = mixture(
        b,
        b.input("x", TOKENS, HIDDEN),
        hidden=HIDDEN,
        ffn=FFN,
        experts=EXPERTS,
        top_k=top_k,
        tokens=TOKENS,
        capacity_factor=capacity_factor,
    )
    model = b.model(y=(y, (TOKENS, HIDDEN)))
    x = np.random.default_rng(0).standard_normal((3, TOKENS, HIDDEN), dtype=np.float32)
    [found] = ReferenceEvaluator(model).run(None, {"x": x})
    return x, found, {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def by_hand(x: np.ndarray, weights: dict[str, np.ndarray], top_k: int, capacity: int) -> np.ndarray:
    result = np.zeros_like(x)
    for sample, tokens in enumerate(x):
        scores = np.exp(tokens @ weights["router.weight"])
        chance = scores / scores.sum(-1, keepdims=True)
        gates = np.where(chance >= np.sort(chance, axis=-1)[:, -top_k, None], chance, 0.0)
        gates /= gates.sum(-1, keepdims=True)
        for expert in range(EXPERTS):
            for token in np.argsort(-gates[:, expert])[:capacity]:
                gate = tokens[token] @ weights["experts.gate.weight"][expert]
                up = tokens[token] @ weights["experts.up.weight"][expert]
                down = (gate / (1 + np.exp(-gate)) * up) @ weights["experts.down.weight"][expert]
                result[sample, token] += gates[token, expert] * down
    return result


@pytest.mark.parametrize(("top_k", "capacity_factor", "capacity"), [(1, 4.0, 7), (2, 2.0, 7), (2, 1.0, 4), (3, 0.5, 3)])
def test_the_chosen_experts_add_up(top_k: int, capacity_factor: float, capacity: int) -> None:
    x, found, weights = mixed(top_k, capacity_factor)
    np.testing.assert_allclose(found, by_hand(x, weights, top_k, capacity), atol=1e-5)


def test_experts_work_on_their_capacity() -> None:
    graph = import_network("deepseek_v2", layers=2, seq_len=4096).graph
    product = graph.operator["layers.1.mlp.experts.up.matmul"]
    assert [str(d) for d in graph.tensors[product.outputs[0]].shape] == ["160", "154*batch", "1536"]
    assert work(product, graph, batch=2, phase="forward").flops == 2 * 160 * 308 * 5120 * 1536
    assert "layers.0.mlp.experts.up.weight" not in graph.tensors


def test_deepseek_v2_has_the_parameters_of_its_paper() -> None:
    graph = import_network("deepseek_v2").graph
    assert graph.parameter_count / 1e9 == pytest.approx(235.74, abs=0.01)
    expert = [p for p in graph.parameters if ".experts." in p]
    active = graph.parameter_count - sum(graph.tensors[p].elements(1) for p in expert) * (1 - 6 / 160)
    assert active / 1e9 == pytest.approx(21.4, abs=0.1)

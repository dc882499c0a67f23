"""Small networks of the kinds that people train, as exporters write them: their gradients are right, and they learn."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import optax
import pytest

from hpdlf.errors import ModelError, PlanError
from hpdlf.experiments.verbs import plan
from hpdlf.models.onnxpp import import_model
from hpdlf.models.onnxpp.gradients import constant_loss, trained_in_vain, without_gradient
from hpdlf.models.plan import Partition, Strategy
from hpdlf.models.program.lower import lower
from hpdlf.models.zoo.small import mlp

NETWORKS = ("convnext", "swin", "t5", "llama", "recogniser", "scanned")


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_learns(name: str, write_network: Callable[[str], Path], learner: Callable[..., Any]) -> None:
    path = write_network(name)
    model = import_model(path, loss="softmax_xent")
    graph = model.graph
    # The networks call a weight a weight, and nothing else.
    weights = {t.name for t in onnx.load(path).graph.initializer if t.name.startswith("weight")}
    assert set(graph.parameters) == weights - set(graph.state)
    assert without_gradient(graph) == ((), ())
    found = learner(model, batch=3)
    assert found.worst_disagreement() < 1e-5
    before = found.loss(found.parameters)
    assert found.after(5, optax.adam(3e-3)) < before
    assert found.after(5, optax.sgd(1e-2)) < before


def test_what_is_rounded_everywhere_is_refused(write_network: Callable[[str], Path]) -> None:
    graph = import_model(write_network("quantised"), loss="mse").graph
    why = trained_in_vain(graph)
    assert why is not None
    assert why.startswith("no gradient of the loss reaches a parameter: all end at QuantizeLinear node")
    names = {o.name: 0 for o in graph.operators}
    partition = Partition(stages=names, segments=dict.fromkeys(names, "0"))
    with pytest.raises(PlanError, match="cannot be trained: no gradient of the loss reaches"):
        lower(graph, partition, Strategy(batch=2))


def test_a_softmax_of_one_score_is_not_planned(tmp_path: Path) -> None:
    onnx.save(mlp((5, 7, 1)), tmp_path / "m.onnx")
    assert constant_loss(import_model(tmp_path / "m.onnx", loss="mse").graph) is None
    with pytest.raises(ModelError, match="has one score per sample, whose softmax is 1 whatever it is"):
        plan(tmp_path / "m.onnx", on="generic-x86:1x1", batch=4, out=tmp_path / "plan.json")

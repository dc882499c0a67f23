"""Exported graphs, real ones: imported with a loss, their gradients are right in 64 bits, and five steps lower the loss."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optax
import pytest

from hpdlf.models.onnxpp import import_model

SHARED = Path(__file__).parents[4] / "shared" / "onnx"
pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="the corpus of exported graphs is not beside the project")


@dataclass(frozen=True, kw_only=True)
class Case:
    """How a graph is imported and trained. `parameters` are in millions, as its source counts them."""

    parameters: float
    loss: str = "softmax_xent"
    bind: dict[str, int] = field(default_factory=dict)
    learning_rate: float = 1e-3


QUICK = {
    "scaler_mlp": Case(parameters=0.004545, loss="mse"),
}
SLOW = {
    "alexnet.train": Case(parameters=61.10, learning_rate=1e-4),
    "densenet121.dynamo_dynbatch": Case(parameters=7.963),
    "distilbert_seqcls.dynamo_dynbatch": Case(parameters=66.95, bind={"s12": 12}, learning_rate=1e-4),
    "gpt2_loss.dynamo_dynbatch": Case(parameters=67.709, bind={"s21": 8, "s12": 8}, learning_rate=1e-4),
    "mobilenet_v3_large.dynamo_dynbatch": Case(parameters=5.451, learning_rate=2e-5),
    "ppocr_cls": Case(parameters=0.12936, bind={"?": 48}),
    "ppocrv4_det": Case(
        parameters=1.1716, loss="sigmoid_xent", bind={"p2o.DynamicDimension.1": 64, "p2o.DynamicDimension.2": 64}
    ),
    "resnet18.train": Case(parameters=11.69),
    "silero_vad_16k_op15": Case(parameters=0.30963, loss="sigmoid_xent", bind={"sequence": 576}),
}


def learns(name: str, case: Case, folder: Path, learner: Callable[..., Any]) -> None:
    script, graph_file = SHARED / "make_weights.py", SHARED / f"{name}.onnx"
    subprocess.run([sys.executable, script, graph_file, "--out", folder], check=True, capture_output=True)
    model = import_model(folder / f"{name}.onnx", loss=case.loss, bind=case.bind)
    assert model.graph.parameter_count / 1e6 == pytest.approx(case.parameters, rel=2e-3)
    found = learner(model, below={"sr": 16000}, ones=("attention_mask",))
    assert found.worst_disagreement() < 1e-4
    assert found.after(5, optax.adam(case.learning_rate)) < found.loss(found.parameters)


@pytest.mark.parametrize("name", QUICK)
def test_a_small_graph_learns(name: str, tmp_path: Path, learner: Callable[..., Any]) -> None:
    learns(name, QUICK[name], tmp_path, learner)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_a_graph_learns(name: str, tmp_path: Path, learner: Callable[..., Any]) -> None:
    learns(name, SLOW[name], tmp_path, learner)

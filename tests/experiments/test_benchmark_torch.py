"""The PyTorch modules are the zoo's networks: with its weights they give what onnxruntime gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from hpdlf.experiments.benchmark_baselines import Job
from hpdlf.models import zoo

torch = pytest.importorskip("torch", reason="PyTorch is the baseline and no part of the tests' installation")
ort = pytest.importorskip("onnxruntime")

from hpdlf.experiments.benchmark_torch import NETWORKS, network, predictor  # noqa: E402

SMALL: dict[str, dict[str, Any]] = {
    "mlp": {"widths": (8, 16, 4)},
    "gpt_blocks": {"layers": 2, "width": 32, "heads": 4, "tokens": 12},
    "bert": {
        "layers": 2,
        "hidden": 32,
        "heads": 4,
        "seq_len": 12,
        "vocab": 50,
        "max_positions": 20,
        "dropout": 0.0,
        "pretraining": False,
    },
    "resnet": {"depth": 18, "image": 32, "classes": 10},
    "mobilenet_v3": {"size": "small", "image": 32, "classes": 10},
    "unet": {"image": 32, "channels": 4, "levels": 2},
}


def _model(name: str) -> onnx.ModelProto:
    hyper = dict(SMALL[name])
    return zoo.mlp(hyper["widths"]) if name == "mlp" else getattr(zoo, name)(**hyper, seed=1)


def _feeds(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    found: dict[str, np.ndarray] = {}
    for value in model.graph.input:
        kind = value.type.tensor_type
        shape = [3 if d.dim_param else d.dim_value for d in kind.shape.dim]
        whole = kind.elem_type == onnx.TensorProto.INT64
        found[value.name] = rng.integers(0, 2, shape) if whole else rng.standard_normal(shape, dtype=np.float32)
    if "mask" in found:
        found["mask"] = (np.arange(12) < [[12], [7], [9]]).astype(np.float32)
    return found


def test_every_network_has_its_test() -> None:
    assert set(SMALL) == set(NETWORKS)


@pytest.mark.parametrize("name", SMALL)
def test_a_module_is_the_network(name: str, tmp_path: Path) -> None:
    model = _model(name)
    feeds = _feeds(model)
    (expected, *_) = ort.InferenceSession(model.SerializeToString()).run(None, feeds)
    turned = tuple(n.input[1] for n in model.graph.node if n.op_type == "MatMul")
    job = Job(network=name, hyper=SMALL[name], optimizer="sgd", learning_rate=0.1, window_steps=1, turned=turned)
    weights = {w.name: onnx.numpy_helper.to_array(w) for w in model.graph.initializer}
    module = network(job, weights).eval()
    with torch.no_grad():
        found = module(*(torch.from_numpy(a) for a in feeds.values())).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["resnet", "bert"])
def test_predictions_are_the_network(name: str) -> None:
    """Normalisations use their statistics, pictures are handed over as they lie in the file; no gradient is kept."""
    model = _model(name)
    feeds = _feeds(model)
    (expected, *_) = ort.InferenceSession(model.SerializeToString()).run(None, feeds)
    turned = tuple(n.input[1] for n in model.graph.node if n.op_type == "MatMul")
    inputs = tuple(feeds)
    job = Job(
        network=name,
        hyper=SMALL[name],
        optimizer="sgd",
        learning_rate=0.1,
        window_steps=1,
        turned=turned,
        inputs=inputs,
        threads=torch.get_num_threads(),
    )
    predict = predictor(job, {w.name: onnx.numpy_helper.to_array(w) for w in model.graph.initializer})
    backwards = dict(reversed(feeds.items()))
    for _ in range(2):
        np.testing.assert_allclose(predict(backwards), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_another_network_is_refused() -> None:
    weights = {w.name: onnx.numpy_helper.to_array(w) for w in zoo.mlp((8, 17, 4)).graph.initializer}
    job = Job(network="mlp", hyper={"widths": (8, 16, 4)}, optimizer="sgd", learning_rate=0.1, window_steps=1)
    with pytest.raises(AssertionError, match="the module is not the network"):
        network(job, weights)

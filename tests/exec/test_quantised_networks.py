"""Networks that onnxruntime has quantised give what onnxruntime gives."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hpdlf.exec.backend import Backend

ort = pytest.importorskip("onnxruntime")
quantization = pytest.importorskip("onnxruntime.quantization")
RNG = np.random.default_rng(0)


def weights(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) * 0.2).astype(np.float32)


def saved(path: Path, nodes: list[Any], shape: list[Any], constants: dict[str, np.ndarray], kind: int = 1) -> Path:
    graph = helper.make_graph(
        [helper.make_node(op_type, inputs, outputs, **more) for op_type, inputs, outputs, more in nodes],
        "network",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def convolutions(path: Path) -> Path:
    """A residual block with a depthwise convolution, pooling and a gate."""
    constants = {
        "w1": weights(8, 3, 3, 3), "b1": weights(8), "w2": weights(8, 1, 3, 3), "w3": weights(16, 8, 3, 3),
        "w4": weights(16, 10), "b4": weights(10),
    }  # fmt: skip
    nodes = [
        ("Conv", ["x", "w1", "b1"], ["c1"], {"pads": [1] * 4, "strides": [2, 2]}),
        ("Relu", ["c1"], ["r1"], {}),
        ("Conv", ["r1", "w2"], ["c2"], {"pads": [1] * 4, "group": 8}),
        ("Add", ["c2", "r1"], ["a2"], {}),
        ("MaxPool", ["a2"], ["p2"], {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("Conv", ["p2", "w3"], ["c3"], {"pads": [1] * 4}),
        ("Sigmoid", ["c3"], ["s3"], {}),
        ("Mul", ["c3", "s3"], ["m3"], {}),
        ("GlobalAveragePool", ["m3"], ["g"], {}),
        ("Flatten", ["g"], ["f"], {}),
        ("Gemm", ["f", "w4", "b4"], ["y"], {}),
    ]
    return saved(path, nodes, ["N", 3, 16, 16], constants)


def attention(path: Path) -> Path:
    """One head between two projections, with a normalisation."""
    constants = {name: weights(16, 16) for name in ("wq", "wk", "wv", "wo")}
    constants.update(g=np.ones(16, np.float32), b=weights(16), root=np.float32(4))
    nodes = [
        ("LayerNormalization", ["x", "g", "b"], ["n"], {}),
        *(("MatMul", ["n", f"w{a}"], [a], {}) for a in "qkv"),
        ("Transpose", ["k"], ["kt"], {"perm": [0, 2, 1]}),
        ("MatMul", ["q", "kt"], ["qk"], {}),
        ("Div", ["qk", "root"], ["scaled"], {}),
        ("Softmax", ["scaled"], ["shares"], {"axis": -1}),
        ("MatMul", ["shares", "v"], ["seen"], {}),
        ("MatMul", ["seen", "wo"], ["o"], {}),
        ("Add", ["o", "x"], ["y"], {}),
    ]
    return saved(path, nodes, ["N", 5, 16], constants)


def compare(path: Path, x: np.ndarray) -> None:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    (wanted,) = ort.InferenceSession(str(path), options).run(None, {"x": x})
    (got,) = Backend.prepare(path).run({"x": x})
    assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


class Samples(quantization.CalibrationDataReader):  # type: ignore[misc]
    """What onnxruntime finds the scales from."""

    def __init__(self, samples: Iterable[np.ndarray]) -> None:
        self.samples = iter(samples)

    def get_next(self) -> dict[str, np.ndarray] | None:
        x = next(self.samples, None)
        return None if x is None else {"x": x}


NETWORKS = {"convolutions": (convolutions, (2, 3, 16, 16)), "attention": (attention, (3, 5, 16))}


@pytest.fixture(autouse=True)
def _quiet() -> None:
    logging.getLogger().setLevel(logging.ERROR)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_scales_from_samples(network: str, form: str, per_channel: bool, tmp_path: Path) -> None:
    build, shape = NETWORKS[network]
    samples = [RNG.standard_normal(shape).astype(np.float32) for _ in range(3)]
    quantization.quantize_static(
        build(tmp_path / "m.onnx"),
        tmp_path / "q.onnx",
        Samples(samples),
        quant_format=quantization.QuantFormat[form],
        per_channel=per_channel,
        weight_type=quantization.QuantType.QInt8,
        activation_type=quantization.QuantType.QUInt8,
    )
    compare(tmp_path / "q.onnx", samples[0])


@pytest.mark.parametrize("network", NETWORKS)
def test_scales_from_each_run(network: str, tmp_path: Path) -> None:
    build, shape = NETWORKS[network]
    quantization.quantize_dynamic(build(tmp_path / "m.onnx"), tmp_path / "q.onnx")
    compare(tmp_path / "q.onnx", RNG.standard_normal(shape).astype(np.float32))

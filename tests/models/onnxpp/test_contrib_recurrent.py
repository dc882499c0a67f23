"""onnxruntime's quantised LSTM gives, written out in standard operators, what onnxruntime gives."""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hpdlf.exec.backend import Backend
from hpdlf.models.onnxpp import import_model

UNITS, INPUTS = 6, 5


def quantised_lstm(
    direction: str, *, batch: Any, seed: int = 0, columns: bool = False, states: bool = False, **attributes: Any
) -> onnx.ModelProto:
    rng = np.random.default_rng(seed)
    count = 2 if direction == "bidirectional" else 1
    scales = (count, 4 * UNITS) if columns else (count,)
    kind: Any = np.int8 if columns else np.uint8
    low, high = np.iinfo(kind).min, np.iinfo(kind).max
    constants = {
        "w": rng.integers(low, high, (count, INPUTS, 4 * UNITS)).astype(kind),
        "r": rng.integers(low, high, (count, UNITS, 4 * UNITS)).astype(kind),
        "b": rng.standard_normal((count, 8 * UNITS)).astype(np.float32) * 0.3,
        "ws": rng.uniform(0.003, 0.005, scales).astype(np.float32),
        "wz": np.zeros(scales, kind) if columns else np.full(scales, 120, kind),
        "rs": rng.uniform(0.003, 0.005, scales).astype(np.float32),
        "rz": np.zeros(scales, kind) if columns else np.full(scales, 130, kind),
    }
    started = ["h", "c"] if states else ["", ""]
    operands = ["x", "w", "r", "b", "", *started, "", "ws", "wz", "rs", "rz"]
    shapes = {"x": [7, batch, INPUTS], **{name: [count, batch, UNITS] for name in started if name}}
    node = helper.make_node(
        "DynamicQuantizeLSTM",
        operands,
        ["y", "yh", "yc"],
        domain="com.microsoft",
        hidden_size=UNITS,
        direction=direction,
        **attributes,
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", "yh", "yc")],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 14), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def feeds(model: onnx.ModelProto, batch: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    shapes = {v.name: [d.dim_value or batch for d in v.type.tensor_type.shape.dim] for v in model.graph.input}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def by_onnxruntime(model: onnx.ModelProto, given: dict[str, np.ndarray]) -> list[np.ndarray]:
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    # With more threads it rounds the parts of a batch each by a scale of its own.
    options.intra_op_num_threads = 1
    return list(ort.InferenceSession(model.SerializeToString(), options).run(None, given))


@pytest.mark.parametrize(
    ("direction", "columns", "states"),
    list(product(["forward", "reverse", "bidirectional"], [False, True], [False, True])),
)
def test_every_rounding_is_onnxruntimes(direction: str, columns: bool, states: bool) -> None:
    model = quantised_lstm(direction, batch=3, columns=columns, states=states)
    given = feeds(model, 3)
    for mine, theirs in zip(Backend.prepare(model).run(given), by_onnxruntime(model, given), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-6)


def test_rare_forms_are_near() -> None:
    model = quantised_lstm("forward", batch=2, clip=3.0)
    given = feeds(model, 2)
    for mine, theirs in zip(Backend.prepare(model).run(given), by_onnxruntime(model, given), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=0.02)


def test_it_is_imported_with_a_batch_that_is_a_symbol(tmp_path: Path) -> None:
    onnx.save(quantised_lstm("bidirectional", batch="N"), tmp_path / "m.onnx")
    model = import_model(tmp_path / "m.onnx", batch_dim="N")
    assert {"Scan", "MatMulInteger"} <= {operator.op_type for operator in model.graph.operators}
    assert not any(operator.domain for operator in model.graph.operators)

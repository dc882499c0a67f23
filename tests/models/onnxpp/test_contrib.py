"""Operators of onnxruntime's domain give, written out in standard ones, what onnxruntime gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from hpdlf.errors import ModelError
from hpdlf.models.onnxpp import import_model, save_onnxpp

F, U8 = TensorProto.FLOAT, TensorProto.UINT8
RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def four_bits(columns: int, blocks: int, block: int) -> dict[str, np.ndarray]:
    packed = RNG.integers(0, 256, (columns, blocks, block // 2), dtype=np.uint8)
    return {"b": packed, "s": np.abs(normal(columns * blocks)) + 0.1}


def pair(size: int = 6) -> dict[str, np.ndarray]:
    scale = {name: np.float32(0.05 * (i + 1)) for i, name in enumerate(("xs", "ys", "zs"))}
    zero = {name: np.uint8(100 + i) for i, name in enumerate(("xz", "yz", "zz"))}
    return {**scale, **zero}


QX = ["x", "xs", "xz"]
CASES: dict[str, tuple[str, list[str], dict[str, list[object]], dict[str, np.ndarray], dict[str, object], int]] = {
    # name: operator, operands, inputs' shapes, constants, attributes, operator set
    "gelu": ("Gelu", ["x"], {"x": ["N", 6]}, {}, {}, 14),
    "bias gelu": ("BiasGelu", ["x", "b"], {"x": ["N", 6]}, {"b": normal(6)}, {}, 17),
    "fast gelu": ("FastGelu", ["x", "b"], {"x": ["N", 6]}, {"b": normal(6)}, {}, 13),
    "quick gelu": ("QuickGelu", ["x"], {"x": ["N", 6]}, {}, {"alpha": 1.7}, 17),
    "skip norm": (
        "SkipLayerNormalization",
        ["x", "x2", "g", "b", "c"],
        {"x": ["N", 3, 6], "x2": ["N", 3, 6]},
        {"g": normal(6), "b": normal(6), "c": normal(6)},
        {"epsilon": 1e-5},
        14,
    ),
    "skip rms norm": (
        "SkipSimplifiedLayerNormalization",
        ["x", "x2", "g"],
        {"x": ["N", 3, 6], "x2": ["N", 3, 6]},
        {"g": normal(6)},
        {},
        17,
    ),
    "embed": (
        "EmbedLayerNormalization",
        ["ids", "", "w", "p", "", "g", "b"],
        {"ids": ["N", 5]},
        {"w": normal(9, 6), "p": normal(7, 6), "g": normal(6), "b": normal(6)},
        {},
        14,
    ),
    "fused conv": (
        "FusedConv",
        ["x", "w", "b"],
        {"x": ["N", 3, 6, 6]},
        {"w": normal(4, 3, 3, 3), "b": normal(4)},
        {"activation": "LeakyRelu", "activation_params": [0.2], "kernel_shape": [3, 3], "pads": [1, 1, 1, 1]},
        13,
    ),
    "fused product": (
        "FusedMatMul",
        ["x", "w"],
        {"x": ["N", 3, 6]},
        {"w": normal(4, 6)},
        {"transB": 1, "alpha": 0.5},
        14,
    ),
    "attention": (
        "Attention",
        ["x", "w", "b"],
        {"x": ["N", 4, 8]},
        {"w": normal(8, 24), "b": normal(24)},
        {"num_heads": 2},
        17,
    ),
    "causal attention": (
        "Attention",
        ["x", "w", "b"],
        {"x": ["N", 4, 8]},
        {"w": normal(8, 24), "b": normal(24)},
        {"num_heads": 2, "unidirectional": 1},
        14,
    ),
    "masked attention": (
        "Attention",
        ["x", "w", "b", "m"],
        {"x": ["N", 4, 8], "m": ["N", 4]},
        {"w": normal(8, 24), "b": normal(24)},
        {"num_heads": 2},
        17,
    ),
    "attention of three": (
        "MultiHeadAttention",
        ["x", "x2", "x3"],
        {"x": ["N", 4, 8], "x2": ["N", 5, 8], "x3": ["N", 5, 8]},
        {},
        {"num_heads": 2},
        17,
    ),
    "rotary": (
        "RotaryEmbedding",
        ["x", "ids", "c", "s"],
        {"x": ["N", 4, 16], "ids": ["N", 4]},
        {"c": normal(10, 4), "s": normal(10, 4)},
        {},
        17,
    ),
    "rotary pairs": (
        "RotaryEmbedding",
        ["x", "ids", "c", "s"],
        {"x": ["N", 4, 16], "ids": ["N", 4]},
        {"c": normal(10, 4), "s": normal(10, 4)},
        {"interleaved": 1},
        17,
    ),
    "four bits": (
        "MatMulNBits",
        ["x", "b", "s"],
        {"x": ["N", 32]},
        four_bits(5, 2, 16),
        {"K": 32, "N": 5, "bits": 4, "block_size": 16},
        17,
    ),
    "dynamic product": (
        "DynamicQuantizeMatMul",
        ["x", "w", "ws", "wz", "b"],
        {"x": ["N", 6]},
        {"w": RNG.integers(-90, 90, (6, 4), dtype=np.int8), "ws": np.float32(0.1), "wz": np.int8(3), "b": normal(4)},
        {},
        14,
    ),
    "quantised sum": ("QLinearAdd", [*QX, "q", "ys", "yz", "zs", "zz"], {"x": ["N", 6], "q": ["N", 6]}, pair(), {}, 14),
    "quantised product": (
        "QLinearMul",
        [*QX, "q", "ys", "yz", "zs", "zz"],
        {"x": ["N", 6], "q": ["N", 6]},
        pair(),
        {},
        14,
    ),
    "quantised sigmoid": ("QLinearSigmoid", [*QX, "ys", "yz"], {"x": ["N", 6]}, pair(), {}, 14),
    "quantised mean": ("QLinearGlobalAveragePool", [*QX, "ys", "yz"], {"x": ["N", 2, 3, 3]}, pair(), {}, 14),
    "quantised join": (
        "QLinearConcat",
        ["zs", "zz", *QX, "q", "ys", "yz"],
        {"x": ["N", 6], "q": ["N", 6]},
        pair(),
        {"axis": 1},
        14,
    ),
    "recurrent": (
        "DynamicQuantizeLSTM",
        ["x", "w", "r", "b", "", "", "", "", "ws", "wz", "rs", "rz"],
        {"x": [3, "N", 5]},
        {
            "w": RNG.integers(-90, 90, (1, 5, 16), dtype=np.int8),
            "r": RNG.integers(-90, 90, (1, 4, 16), dtype=np.int8),
            "b": normal(1, 32),
            "ws": np.full(1, 0.01, np.float32),
            "wz": np.zeros(1, np.int8),
            "rs": np.full(1, 0.02, np.float32),
            "rz": np.zeros(1, np.int8),
        },
        {"hidden_size": 4},
        14,
    ),
}


def kind_of(name: str, operator: str) -> int:
    if name == "ids" and operator == "RotaryEmbedding":
        return TensorProto.INT64
    if name in ("m", "ids"):
        return TensorProto.INT32
    return U8 if operator.startswith("QLinear") else F


def build(name: str, path: Path) -> onnx.ModelProto:
    operator, operands, inputs, constants, attributes, version = CASES[name]
    results = ["y", "lengths"] if name == "embed" else ["y"]
    node = helper.make_node(operator, operands, results, name="it", domain="com.microsoft", **attributes)
    graph = helper.make_graph(
        [node],
        "contrib",
        [helper.make_tensor_value_info(n, kind_of(n, operator), shape) for n, shape in inputs.items()],
        [helper.make_tensor_value_info("y", kind_of("y", operator), None)],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    opsets = [helper.make_opsetid("", version), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    path.write_bytes(model.SerializeToString())
    return model


def feeds(name: str, batch: int) -> dict[str, np.ndarray]:
    operator, _, inputs, _, _, _ = CASES[name]
    made: dict[str, np.ndarray] = {}
    for n, shape in inputs.items():
        dims = [batch if d == "N" else int(str(d)) for d in shape]
        kind = kind_of(n, operator)
        if kind == F:
            made[n] = normal(*dims)
        elif n == "m":
            made[n] = (np.arange(dims[1])[None] < np.arange(1, batch + 1)[:, None] + 1).astype(np.int32)
        else:
            made[n] = RNG.integers(0, 7 if n == "ids" else 256, dims).astype(np.uint8 if kind == U8 else np.int32)
    if name.startswith("rotary"):
        made["ids"] = np.tile(np.arange(4, dtype=np.int64), (batch, 1))
    return made


@pytest.mark.parametrize("name", list(CASES))
def test_what_is_written_out_computes_the_same(name: str, tmp_path: Path) -> None:
    build(name, tmp_path / "m.onnx")
    model = import_model(tmp_path / "m.onnx", batch_dim="N")
    assert all(not o.domain for o in model.graph.operators)
    save_onnxpp(model, tmp_path / "pp.onnx")
    given = feeds(name, 3)
    sessions = [ort.InferenceSession(tmp_path / f, providers=["CPUExecutionProvider"]) for f in ("m.onnx", "pp.onnx")]
    expected, found = (s.run(["y"], given)[0] for s in sessions)
    if expected.dtype == np.uint8:  # a tie may round either way
        assert np.abs(expected.astype(int) - found.astype(int)).max() <= 1
    elif name == "recurrent" or name.startswith("dynamic"):  # onnxruntime rounds what goes in to 8 bits
        np.testing.assert_allclose(found, expected, atol=0.05 * np.abs(expected).max())
    else:
        np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5)


def test_norms_in_old_operator_sets_are_written_out(tmp_path: Path) -> None:
    node = helper.make_node("LayerNormalization", ["x", "g", "b"], ["y"], name="norm", epsilon=1e-5)
    constants = [numpy_helper.from_array(normal(6), n) for n in ("g", "b")]
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", F, ["N", 6])],
        [helper.make_tensor_value_info("y", F, None)],
        constants,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)], ir_version=7), tmp_path / "m.onnx")
    model = import_model(tmp_path / "m.onnx")
    assert "ReduceMean" in {o.op_type for o in model.graph.operators}


def test_what_has_no_rule_is_refused_by_name(tmp_path: Path) -> None:
    node = helper.make_node("BifurcationDetector", ["x"], ["y"], name="odd", domain="com.microsoft")
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("x", F, ["N", 6])], [helper.make_tensor_value_info("y", F, None)]
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="BifurcationDetector"):
        import_model(tmp_path / "m.onnx")

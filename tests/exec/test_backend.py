"""The standard's interface, and the standard's own tests over it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hpdlf.errors import ModelError
from hpdlf.exec.backend import Backend
from hpdlf.experiments.validate_conformance import NO_REASON, read_table, run_suite, suite

DOCUMENT = Path(__file__).parents[2] / "docs" / "onnx.md"
EVERY = 19


def _model(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int, Any]],
    outputs: dict[str, tuple[int, Any]],
    initializers: dict[str, np.ndarray] | None = None,
    opset: int = 20,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(n, *spec) for n, spec in inputs.items()],
        [helper.make_tensor_value_info(n, *spec) for n, spec in outputs.items()],
        [numpy_helper.from_array(v, n) for n, v in (initializers or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


DOUBLED = _model(
    [helper.make_node("Add", ["x", "x"], ["y"])],
    {"x": (TensorProto.FLOAT, ["n"])},
    {"y": (TensorProto.FLOAT, ["n"])},
)


def test_sample_of_the_standards_tests_passes() -> None:
    known = read_table(DOCUMENT)
    tests = dict(list(suite().items())[::EVERY])
    results = list(run_suite(tests))
    assert len(results) > 100
    assert {r.name: r.error for r in results if r.error and r.name not in known} == {}


@pytest.mark.slow
def test_every_test_of_the_standard_passes_or_is_explained() -> None:
    results = list(run_suite(suite()))
    failed = {r.name: r.error for r in results if r.error}
    known = read_table(DOCUMENT)
    assert len(results) >= 2033
    assert {name: error for name, error in failed.items() if name not in known} == {}
    assert sorted(known) == sorted(failed), (
        "the table lists tests that pass: write it anew (validate_conformance --table)"
    )
    assert NO_REASON not in known.values()


def test_inputs_come_by_order_or_by_name() -> None:
    prepared = Backend.prepare(DOUBLED)
    x = np.array([1.5, 2], np.float32)
    assert prepared.run([x])[0].tolist() == prepared.run({"x": x})[0].tolist() == [3, 4]
    with pytest.raises(ModelError, match="takes 1 inputs"):
        prepared.run([x, x])
    with pytest.raises(ModelError, match="z is none of them; x is missing"):
        prepared.run({"z": x})


def test_inputs_are_what_the_model_states() -> None:
    model = _model(
        [helper.make_node("Neg", ["x"], ["y"])],
        {"x": (TensorProto.FLOAT, ["n", 3])},
        {"y": (TensorProto.FLOAT, ["n", 3])},
    )
    prepared = Backend.prepare(model)
    assert prepared.run([np.ones((2, 3), np.float32)])[0].dtype == np.float32
    with pytest.raises(
        ModelError, match=r"input 'x' is float32, float64 was given: convert it, array.astype\('float32'\)"
    ):
        prepared.run([np.ones((2, 3))])
    for shape in ((2, 4), (3,)):
        with pytest.raises(ModelError, match=r"input 'x' has shape \[n, 3\], \["):
            prepared.run([np.ones(shape, np.float32)])


def test_file_and_proto_give_the_same(tmp_path: Path) -> None:
    onnx.save(DOUBLED, tmp_path / "m.onnx")
    x = np.arange(3, dtype=np.float32)
    assert Backend.run_model(tmp_path / "m.onnx", [x])[0].tolist() == Backend.run_model(DOUBLED, [x])[0].tolist()


def test_damaged_model_is_refused_in_one_sentence(tmp_path: Path) -> None:
    broken = onnx.ModelProto()
    broken.CopyFrom(DOUBLED)
    broken.graph.node[0].input[0] = "nowhere"
    with pytest.raises(ModelError, match=r"the model cannot be imported.*nowhere"):
        Backend.prepare(broken)
    onnx.save(broken, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="nowhere"):
        Backend.prepare(tmp_path / "m.onnx")


def test_devices() -> None:
    assert Backend.supports_device("CPU")
    assert not Backend.supports_device("CUDA:63")
    with pytest.raises(ModelError, match="CUDA:63"):
        Backend.prepare(DOUBLED, "CUDA:63")


def test_a_model_runs_on_the_device_it_was_prepared_for() -> None:
    program = """
import numpy as np
import jax
from onnx import helper
from hpdlf.exec.backend import Backend

graph = helper.make_graph(
    [helper.make_node("Add", ["x", "x"], ["y"])],
    "g",
    [helper.make_tensor_value_info("x", 1, [2])],
    [helper.make_tensor_value_info("y", 1, [2])],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
prepared = Backend.prepare(model, "CPU:1")
seen = []
runner = prepared._runner
prepared._runner = lambda *given: seen.extend(runner(*given)) or seen
assert prepared.run([np.ones(2, np.float32)])[0].tolist() == [2, 2]
assert seen[0].devices() == {jax.devices("cpu")[1]}, seen[0].devices()
"""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", program], env={**os.environ, **flags}, check=True)


def test_64_bit_types_are_computed_as_they_are() -> None:
    import jax

    node = helper.make_node("Mul", ["a", "b"], ["c"])
    a = np.array([2**40 + 1], np.int64)
    (result,) = Backend.run_node(node, [a, np.array([3], np.int64)])
    assert result.dtype == np.int64
    assert result.tolist() == [3 * (2**40 + 1)]
    assert not jax.config.jax_enable_x64


def test_external_data_is_found_beside_the_file(tmp_path: Path) -> None:
    weight = np.arange(2000, dtype=np.float32)
    model = _model(
        [helper.make_node("Mul", ["x", "w"], ["y"])],
        {"x": (TensorProto.FLOAT, [2000])},
        {"y": (TensorProto.FLOAT, [2000])},
        {"w": weight},
    )
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=0)
    (y,) = Backend.run_model(tmp_path / "m.onnx", [np.full(2000, 2, np.float32)])
    assert y.tolist() == (2 * weight).tolist()


def test_functions_of_the_model_are_run() -> None:
    square = helper.make_function(
        "mine", "Square", ["a"], ["b"], [helper.make_node("Mul", ["a", "a"], ["b"])], [helper.make_opsetid("", 20)]
    )
    model = _model(
        [helper.make_node("Square", ["x"], ["y"], domain="mine")],
        {"x": (TensorProto.FLOAT, ["n"])},
        {"y": (TensorProto.FLOAT, ["n"])},
    )
    model.functions.append(square)
    model.opset_import.append(helper.make_opsetid("mine", 1))
    assert Backend.run_model(model, [np.array([3], np.float32)])[0].tolist() == [9]

"""Islands: what is compiled together, what is known before the run, and how often anything compiles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from hpdlf.errors import ModelError
from hpdlf.exec.operators import step_context
from hpdlf.exec.runner import Runner
from hpdlf.models.onnxpp.bodies import body_of
from hpdlf.models.onnxpp.graph import Body


def _body(nodes: list[Any], inputs: str, outputs: str, **constants: np.ndarray) -> Body:
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_empty_tensor_value_info(n) for n in inputs.split()],
        [helper.make_empty_tensor_value_info(n) for n in outputs.split()],
        [helper.make_tensor(n, TensorProto.INT64, v.shape, v.reshape(-1)) for n, v in constants.items()],
    )
    return body_of(graph, {"": 20})


def _run(runner: Runner, *given: Any) -> list[Any]:
    context = step_context(seed=0, step=0, samples=np.arange(1))
    return [np.asarray(v) for v in runner(given, {}, context)]


def _ends(runner: Runner) -> list[tuple[int, int]]:
    return sorted((start, island.end) for start, island in runner.islands.items())


node = helper.make_node
FLOATS = np.arange(6, dtype=np.float32)


def test_operand_that_is_an_input_compiles_once_per_value() -> None:
    runner = Runner(_body([node("Reshape", ["x", "s"], ["y"]), node("Neg", ["y"], ["z"])], "x s", "z"))
    for shape in ([2, 3], [3, 2], [2, 3], [3, 2]):
        assert _run(runner, FLOATS, np.array(shape))[0].tolist() == (-FLOATS.reshape(shape)).tolist()
    assert _ends(runner) == [(0, 2)]
    (island,) = runner.islands.values()
    assert island.static == {"s"}
    assert len(island.compiled) == 2


def test_what_was_compiled_and_not_used_for_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpdlf.exec.island.KEPT", 2)
    runner = Runner(_body([node("Reshape", ["x", "s"], ["y"])], "x s", "y"))
    for shape in ([2, 3], [3, 2], [2, 3], [6, 1], [1, 6]):
        assert _run(runner, FLOATS, np.array(shape))[0].shape == tuple(shape)
        (island,) = runner.islands.values()
        assert len(island.compiled) <= 2
    functions = set(island.compiled.values())
    _run(runner, FLOATS, np.array([6, 1]))
    assert set(island.compiled.values()) == functions


def test_shape_arithmetic_stays_within_one_island() -> None:
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Mul", ["s", "two"], ["t"]),
        node("Expand", ["one", "t"], ["y"]),
    ]
    runner = Runner(_body(nodes, "x", "y", two=np.array([2]), one=np.array([1])))
    assert _run(runner, FLOATS)[0].shape == (12,)
    assert [(i.end, i.static) for i in runner.islands.values()] == [(3, set())]


def test_integers_that_lead_to_a_shape_become_static() -> None:
    nodes = [node("Add", ["a", "b"], ["s"]), node("Reshape", ["x", "s"], ["y"])]
    runner = Runner(_body(nodes, "x a b", "y"))
    assert _run(runner, FLOATS, np.array([1, 1]), np.array([1, 2]))[0].shape == (2, 3)
    (island,) = runner.islands.values()
    assert island.static == {"a", "b"}
    assert island.end == 2


def test_shape_computed_from_data_cuts_the_island_where_it_is_needed() -> None:
    nodes = [
        node("ReduceSum", ["x"], ["t"], keepdims=0),
        node("Cast", ["t"], ["n"], to=TensorProto.INT64),
        node("Range", ["zero", "n", "one"], ["y"]),
        node("Add", ["y", "one"], ["z"]),
    ]
    runner = Runner(_body(nodes, "x", "z", zero=np.array(0), one=np.array(1)))
    assert _run(runner, np.array([1.5, 2.5], np.float32))[0].tolist() == [1, 2, 3, 4]
    assert _run(runner, np.array([1, 1], np.float32))[0].tolist() == [1, 2]
    assert _ends(runner) == [(0, 2), (2, 4)]


def test_operators_around_one_on_the_host_are_compiled_together() -> None:
    nodes = [
        node("Neg", ["x"], ["a"]),
        node("NonZero", ["x"], ["i"]),
        node("Exp", ["x"], ["b"]),
        node("Add", ["a", "b"], ["c"]),
        node("Shape", ["i"], ["s"]),
    ]
    runner = Runner(_body(nodes, "x", "c s"))
    c, s = _run(runner, FLOATS)
    np.testing.assert_allclose(c, np.exp(FLOATS) - FLOATS, rtol=1e-6)
    assert s.tolist() == [1, 5]
    assert [n.op_type for n in runner.operators] == ["Neg", "Exp", "Add", "NonZero", "Shape"]


def test_branch_is_chosen_by_data_where_both_have_one_shape() -> None:
    def branch(op_type: str) -> Any:
        return helper.make_graph([node(op_type, ["x"], ["r"])], op_type, [], [helper.make_empty_tensor_value_info("r")])

    nodes = [
        node("ReduceMax", ["x"], ["m"], keepdims=0),
        node("Cast", ["m"], ["c"], to=TensorProto.BOOL),
        node("If", ["c"], ["y"], then_branch=branch("Neg"), else_branch=branch("Exp")),
    ]
    runner = Runner(_body(nodes, "x", "y"))
    assert _run(runner, FLOATS)[0].tolist() == (-FLOATS).tolist()
    assert _run(runner, 0 * FLOATS)[0].tolist() == [1] * 6
    assert [(i.end, i.static, len(i.compiled)) for i in runner.islands.values()] == [(3, set(), 1)]


def test_new_shapes_are_traced_anew() -> None:
    runner = Runner(_body([node("Reshape", ["x", "s"], ["y"])], "x", "y", s=np.array([-1, 1])))
    assert _run(runner, FLOATS)[0].shape == (6, 1)
    assert _run(runner, FLOATS[:4])[0].shape == (4, 1)


def test_unknown_operator_is_named() -> None:
    with pytest.raises(ModelError, match=r"'n'.*did you mean Relu"):
        Runner(_body([node("Rellu", ["x"], ["y"], name="n")], "x", "y"))


def test_cycle_is_refused() -> None:
    nodes = [node("Add", ["x", "b"], ["a"]), node("Neg", ["a"], ["b"])]
    with pytest.raises(ModelError, match="cycle"):
        Runner(_body(nodes, "x", "a"))

"""Finding the function that computes an operator, and what is said where there is none."""

import doctest

import jax
import numpy as np
import pytest

from hpdlf.errors import ModelError
from hpdlf.exec.operators import casting, lowering, registry, static, step_context, window
from hpdlf.models.onnxpp import Operator


def node(op_type: str, **attributes: object) -> Operator:
    return Operator(name="a node", op_type=op_type, family="view", inputs=("x",), outputs=("y",), attributes=attributes)


@pytest.mark.parametrize(("opset", "since"), [(1, 1), (12, 1), (13, 13), (20, 13)])
def test_the_newest_registration_that_the_opset_knows(opset: int, since: int) -> None:
    assert lowering(node("Squeeze"), opset).since == since


@pytest.mark.parametrize(
    ("op_type", "opset", "words"),
    [("Convv", 20, "did you mean Conv?"), ("Where", 3, "from opset 9 on"), ("NoSuchThing", 20, "not known")],
)
def test_a_missing_operator_says_how_to_add_it(op_type: str, opset: int, words: str) -> None:
    with pytest.raises(ModelError) as caught:
        lowering(node(op_type), opset)
    message = str(caught.value)
    assert words in message
    assert f"operator {op_type} of node 'a node'" in message
    assert "CONTRIBUTING.md" in message


def test_registering_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="registered twice"):
        registry.lowers("Relu")(lambda node, x: x)


def test_a_shape_computed_from_data_is_refused() -> None:
    def reshaped(x: jax.Array, shape: jax.Array) -> jax.Array:
        context = step_context(seed=0, step=0, samples=np.arange(1))
        return lowering(node("Reshape"), 20)(node("Reshape"), x, shape, context=context)[0]

    with pytest.raises(ModelError, match="input 'shape' of Reshape node 'a node' is computed from data"):
        jax.jit(reshaped)(np.zeros(4), np.array([2, 2]))


def test_static_accepts_numbers_from_before_the_run() -> None:
    assert static(node("Reshape"), "shape", np.int64(3)) == 3


def test_random_numbers_follow_the_sample_along_any_axis() -> None:
    context = step_context(seed=2, step=1, samples=np.array([5, 9]))
    swapped = step_context(seed=2, step=1, samples=np.array([9, 5]))
    for axis, shape in ((0, (4, 3)), (1, (3, 4))):
        at, swapped_at = context.at(node("Dropout"), axis), swapped.at(node("Dropout"), axis)
        drawn, other = at.uniform(shape, np.float32), swapped_at.uniform(shape, np.float32)
        np.testing.assert_array_equal(np.take(drawn, [2, 3, 0, 1], axis), other)
        assert np.unique(drawn).size == drawn.size


def test_rows_that_are_no_multiple_of_the_samples_are_refused() -> None:
    context = step_context(seed=0, step=0, samples=np.arange(2)).at(node("Dropout"), 0)
    with pytest.raises(ModelError, match="3 rows along axis 0"):
        context.uniform((3, 2), np.float32)


@pytest.mark.parametrize("module", [casting, registry, window])
def test_examples_in_docstrings(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]


def test_gather_beyond_its_table_says_so() -> None:
    take = Operator(name="take", op_type="Gather", family="gather", inputs=("t", "i"), outputs=("y",))
    context = step_context(seed=0, step=0, samples=np.arange(1))
    with pytest.raises(ModelError, match="'take' takes rows up to 4 of a table of 4"):
        lowering(take, 20)(take, np.zeros((4, 1)), np.array([0, 4]), context=context)

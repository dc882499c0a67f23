"""Random operators: their moments, and that seed, operator and sample alone decide."""

from typing import Any

import jax
import numpy as np
import pytest

from hpdlf.exec.operators import Context, lowering, step_context
from hpdlf.exec.operators.interpret import interpret
from hpdlf.models.onnxpp import Operator
from hpdlf.models.onnxpp.graph import Body


def drawn(
    op_type: str,
    *operands: Any,
    name: str = "r",
    seed: int = 0,
    samples: Any = (0,),
    axis: int | None = None,
    **attributes: Any,
) -> np.ndarray:
    node = Operator(name=name, op_type=op_type, family="elementwise", inputs=(), outputs=("y",), attributes=attributes)
    context = step_context(seed=seed, step=0, samples=np.array(samples)).at(node, axis)
    return np.asarray(lowering(node, 22)(node, *operands, context=context)[0])


def test_uniform_and_normal_moments() -> None:
    uniform = drawn("RandomUniform", shape=(200, 100), low=-1.0, high=3.0)
    assert uniform.dtype == np.float32
    assert -1 <= uniform.min() < -0.99 < 2.99 < uniform.max() <= 3
    assert uniform.mean() == pytest.approx(1, abs=0.03)
    normal = drawn("RandomNormal", shape=(200, 100), mean=2.0, scale=0.5, dtype=10)
    assert normal.dtype == np.float16
    assert normal.astype(np.float64).mean() == pytest.approx(2, abs=0.02)
    assert normal.astype(np.float64).std() == pytest.approx(0.5, abs=0.01)
    assert np.isfinite(normal).all()


@pytest.mark.parametrize("op_type", ["RandomUniform", "RandomNormal"])
def test_seeds_and_names_tell_operators_apart(op_type: str) -> None:
    base = drawn(op_type, shape=(50,))
    np.testing.assert_array_equal(base, drawn(op_type, shape=(50,)))
    for other in ({"name": "s"}, {"seed": 1}):
        assert not np.array_equal(base, drawn(op_type, shape=(50,), **other))  # type: ignore[arg-type]
    node = Operator(name="r", op_type=op_type, family="elementwise", inputs=(), outputs=("y",))
    node.attributes.update(shape=(50,), seed=3.5)
    context = step_context(seed=0, step=0, samples=np.arange(1)).at(node, None)
    assert not np.array_equal(base, lowering(node, 22)(node, context=context)[0])


@pytest.mark.parametrize("op_type", ["RandomUniformLike", "RandomNormalLike", "Bernoulli"])
def test_a_sample_draws_the_same_wherever_it_lies(op_type: str) -> None:
    x = np.full((4, 30), 0.5, np.float64)
    together = drawn(op_type, x, samples=(3, 1, 7, 2), axis=0)
    alone = drawn(op_type, x[:1], samples=(7,), axis=0)
    np.testing.assert_array_equal(together[2:3], alone)


def test_bernoulli_follows_its_probabilities() -> None:
    x = np.broadcast_to(np.float32([0, 0.25, 1]), (4000, 3))
    y = drawn("Bernoulli", x, dtype=6)
    assert y.dtype == np.int32
    np.testing.assert_allclose(y.mean(axis=0), [0, 0.25, 1], atol=0.03)


def test_multinomial_follows_unnormalised_logarithms() -> None:
    x = np.log(np.float32([[2, 6, 2], [0, 0, 5]]) + 1e-30)
    y = drawn("Multinomial", x, sample_size=5000, dtype=7)
    assert (y.shape, y.max()) == ((2, 5000), 2)
    np.testing.assert_allclose(np.bincount(y[0], minlength=3) / 5000, [0.2, 0.6, 0.2], atol=0.03)
    assert (y[1] == 2).all()


def test_a_branch_that_is_known_may_draw_in_compiled_code() -> None:
    draws = Operator(
        name="r", op_type="RandomNormal", family="random", inputs=(), outputs=("r",), attributes={"shape": (2,)}
    )
    branch = Body(name="b", opsets={"": 20}, operators=(draws,), inputs=(), outputs=("r",))
    branches = {"then_branch": branch, "else_branch": branch}
    node = Operator(name="i", op_type="If", family="control", inputs=("c",), outputs=("y",), attributes=branches)

    @jax.jit
    def compiled(context: Context) -> Any:
        values: dict[str, Any] = {"c": np.array(True)}
        interpret([(node, lowering(node, 20))], values, context, {})
        return values["y"]

    first, again, other = (compiled(step_context(seed=0, step=n, samples=np.arange(1))) for n in (0, 0, 1))
    assert first.tolist() == again.tolist() != other.tolist()

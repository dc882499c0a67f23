"""BatchNormalization and Dropout in every operator set's form: what trains, what evaluates, and what a cut may not change."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpdlf.exec.operators import Context, lowering, step_context
from hpdlf.models.onnxpp import Operator

pytestmark = pytest.mark.usefixtures("x64")


def compute(op_type: str, opset: int, *operands: Any, context: Context, outputs: int = 1, **attributes: Any) -> Any:
    names = tuple("xsbmv"[: len(operands)])
    results = tuple(f"y{i}" for i in range(outputs))
    operator = Operator(
        name="n", op_type=op_type, family="elementwise", inputs=names, outputs=results, attributes=attributes
    )
    return lowering(operator, opset)(operator, *operands, context=context)


def context(samples: Any = 4, *, training: bool = True, step: int = 0) -> Context:
    indices = np.arange(samples) if isinstance(samples, int) else samples
    return step_context(seed=3, step=step, samples=indices, training=training)


# opset, outputs, attributes, whether such a node trains
NORMS = [
    (1, 5, {}, True),
    (6, 5, {"is_test": 1}, False),
    (6, 1, {"is_test": 0}, False),
    (7, 5, {}, True),
    (9, 1, {}, False),
    (13, 5, {}, True),
    (14, 3, {"training_mode": 1}, True),
    (15, 1, {}, False),
    (22, 3, {"training_mode": 1}, True),
]


@pytest.mark.parametrize(("opset", "outputs", "attributes", "trains"), NORMS)
@pytest.mark.parametrize("training", [True, False])
def test_batch_normalisation(
    opset: int, outputs: int, attributes: dict[str, Any], trains: bool, training: bool
) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 3, 2, 5)) * 2 + 1
    scale, bias, mean, variance = rng.random((4, 3)) + 0.5
    results = compute(
        "BatchNormalization", opset, jnp.asarray(x), scale, bias, mean, variance, context=context(training=training),
        outputs=outputs, momentum=0.75, epsilon=1e-3, **attributes,
    )  # fmt: skip
    own = trains and training
    centre = x.mean((0, 2, 3)) if own else mean
    spread = x.var((0, 2, 3)) if own else variance
    column = (1, 3, 1, 1)
    expected = (x - centre.reshape(column)) / np.sqrt(spread.reshape(column) + 1e-3)
    expected = expected * scale.reshape(column) + bias.reshape(column)
    np.testing.assert_allclose(results[0], expected, rtol=1e-12)
    if outputs > 1:
        kept = 0.75 if own else 1.0
        np.testing.assert_allclose(results[1], kept * mean + (1 - kept) * centre, rtol=1e-12)
        np.testing.assert_allclose(results[2], kept * variance + (1 - kept) * spread, rtol=1e-12)


def test_batch_normalisation_of_every_element_by_itself() -> None:
    """`spatial` 0, before operator set 9: a mean and a variance for each place of a sample."""
    rng = np.random.default_rng(1)
    x, (scale, bias, mean) = rng.standard_normal((4, 3, 2)), rng.standard_normal((3, 3, 2))
    variance = rng.random((3, 2)) + 1
    [y] = compute(
        "BatchNormalization", 8, jnp.asarray(x), scale, bias, mean, variance, context=context(), spatial=0, epsilon=0.0
    )
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(variance) * scale + bias, rtol=1e-12)


def test_statistics_of_half_precision_are_not_rounded_to_it() -> None:
    x = (np.random.default_rng(2).standard_normal((64, 1, 64)) + 30).astype(np.float16)
    one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
    y, mean, variance = compute(
        "BatchNormalization", 15, jnp.asarray(x), one, zero, zero, one, context=context(64), outputs=3, momentum=0.0,
        training_mode=1,
    )  # fmt: skip
    assert (y.dtype, mean.dtype, variance.dtype) == (np.float16, np.float32, np.float32)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(mean, [wide.mean()], rtol=1e-6)
    np.testing.assert_allclose(variance, [wide.var()], rtol=1e-4)
    np.testing.assert_allclose(np.float64(y).std(), 1, rtol=1e-2)


# opset, operands behind x, attributes, the share that is dropped
DROPOUTS = [
    (1, (), {"ratio": 0.25}, 0.25),
    (6, (), {"is_test": 1}, 0.0),
    (7, (), {}, 0.5),
    (10, (), {"ratio": 0.25}, 0.25),
    (12, (), {}, 0.0),
    (12, (np.float32(0.25), None), {}, 0.0),
    (13, (np.float32(0.25), np.asarray(True)), {}, 0.25),
    (13, (None, np.asarray(True)), {}, 0.5),
    (13, (np.float32(0.25), np.asarray(False)), {}, 0.0),
    (22, (np.float32(0.75), np.asarray(True)), {}, 0.75),
    (22, (np.float32(1), np.asarray(True)), {}, 1.0),
]


@pytest.mark.parametrize(("opset", "operands", "attributes", "share"), DROPOUTS)
@pytest.mark.parametrize("training", [True, False])
def test_dropout(opset: int, operands: Any, attributes: dict[str, Any], share: float, training: bool) -> None:
    x = jnp.full((8, 500), 3.0)
    run = context(8, training=training)
    y, mask = compute("Dropout", opset, x, *operands, context=run, outputs=2, **attributes)
    share = share if training else 0.0
    assert np.mean(np.asarray(mask) == 0) == pytest.approx(share, abs=0.03)
    assert mask.dtype == (bool if opset >= 10 else x.dtype)
    np.testing.assert_allclose(y, np.where(mask, 3.0 / (1 - share) if share < 1 else 0, 0))
    gradient = jax.grad(lambda x: jnp.sum(compute("Dropout", opset, x, *operands, context=run, **attributes)[0]))(x)
    np.testing.assert_allclose(gradient, y / 3)


def test_dropout_by_a_mode_and_a_ratio_that_arrive_as_data() -> None:
    x = jnp.ones((4, 100))

    @jax.jit
    def dropped(ratio: Any, mode: Any) -> Any:
        return compute("Dropout", 13, x, ratio, mode, context=context())[0]

    known = compute("Dropout", 13, x, np.float32(0.3), np.asarray(True), context=context())[0]
    np.testing.assert_allclose(dropped(jnp.float32(0.3), jnp.asarray(True)), known, rtol=1e-6)
    np.testing.assert_array_equal(dropped(jnp.float32(0.3), jnp.asarray(False)), x)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([1, 6]), st.permutations(range(6)), st.integers(0, 5), st.sampled_from([1, 3]))
def test_a_sample_loses_the_same_elements_wherever_it_is(cut: int, order: list[int], step: int, rows: int) -> None:
    """Whatever the microbatch is, and in which order; a sample may have several rows."""
    together = masks(np.arange(6), step, rows)
    for part in (order[:cut], order[cut:]):
        if part:
            np.testing.assert_array_equal(masks(np.asarray(part), step, rows), together[np.asarray(part)])


@partial(jax.jit, static_argnames="rows")
def masks(samples: jax.Array, step: int, rows: int) -> jax.Array:
    """What is kept of `rows` rows of each sample, [samples, rows, 40]."""
    x, on, ratio = jnp.ones((len(samples) * rows, 40)), np.asarray(True), np.float32(0.5)
    return compute("Dropout", 13, x, ratio, on, context=context(samples, step=step))[0].reshape(-1, rows, 40)

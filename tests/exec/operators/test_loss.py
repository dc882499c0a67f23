"""Losses against closed forms, finite differences and what must stay finite."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from hpdlf.exec.operators import lowering, step_context
from hpdlf.models.onnxpp import Operator

pytestmark = pytest.mark.usefixtures("x64")


def compute(op_type: str, *operands: Any, outputs: int = 1, **attributes: Any) -> tuple[Any, ...]:
    operator = Operator(
        name="n",
        op_type=op_type,
        family="loss",
        inputs=tuple("xlw"[: len(operands)]),
        outputs=tuple(f"y{i}" for i in range(outputs)),
        attributes=attributes,
    )
    context = step_context(seed=0, step=0, samples=np.arange(2))
    return lowering(operator, 13)(operator, *operands, context=context)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignored", [None, 1, -100])
@pytest.mark.parametrize("extra", [(), pytest.param((2,), marks=pytest.mark.slow), (2, 3)])
def test_cross_entropy_is_the_closed_form(
    reduction: str, weighted: bool, ignored: int | None, extra: tuple[int, ...], check_gradients: Callable[..., Any]
) -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.standard_normal((5, 4, *extra)), rng.integers(0, 4, (5, *extra))
    labels.flat[0] = 1 if ignored is None else ignored
    weights = rng.random(4) + 0.5 if weighted else np.ones(4)
    attributes: dict[str, Any] = {"reduction": reduction} | ({} if ignored is None else {"ignore_index": ignored})
    operands = (scores, labels, *((weights,) if weighted else ()))

    def losses(scores: Any) -> Any:
        """By one operator, with the logarithms, and from these by the other."""
        loss, log_p = compute("SoftmaxCrossEntropyLoss", scores, *operands[1:], outputs=2, **attributes)
        return loss, log_p, *compute("NegativeLogLikelihoodLoss", log_p, *operands[1:], **attributes)

    loss, log_p, again = check_gradients(losses, scores)
    expected_log_p = scores - np.log(np.exp(scores).sum(1, keepdims=True))
    np.testing.assert_allclose(log_p, expected_log_p, rtol=1e-12)
    safe = np.where(labels == ignored, 0, labels) if ignored is not None else labels
    weight = weights[safe] * (labels != ignored if ignored is not None else 1)
    each = -np.take_along_axis(expected_log_p, safe[:, None], 1)[:, 0] * weight
    expected = {"none": each, "sum": each.sum(), "mean": each.sum() / weight.sum()}[reduction]
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    np.testing.assert_allclose(again, expected, rtol=1e-12)


def test_scores_however_large_give_a_finite_loss_and_gradient() -> None:
    scores = np.asarray([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]])
    labels = np.asarray([1, 1])

    def loss(scores: Any) -> Any:
        return compute("SoftmaxCrossEntropyLoss", scores, labels)[0]

    value, gradient = jax.jit(jax.value_and_grad(loss))(scores)
    assert value == pytest.approx(1e4)
    np.testing.assert_allclose(gradient, [[0.5, -0.5, 0], [0, 0, 0]], atol=1e-12)


def test_half_precision_does_not_round_the_sum() -> None:
    rng = np.random.default_rng(1)
    scores = rng.standard_normal((64, 512)).astype(np.float16)
    labels = rng.integers(0, 512, 64)
    [half] = compute("SoftmaxCrossEntropyLoss", scores, labels)[:1]
    [double] = compute("SoftmaxCrossEntropyLoss", scores.astype(np.float64), labels)[:1]
    assert half.dtype == np.float16
    assert float(half) == pytest.approx(float(double), rel=1e-3)


def test_a_microbatch_of_masked_labels_weighs_nothing() -> None:
    scores, labels = np.random.default_rng(2).standard_normal((3, 4)), np.full(3, -100)

    def loss(scores: Any) -> Any:
        return compute("SoftmaxCrossEntropyLoss", scores, labels, ignore_index=-100)[0]

    value, gradient = jax.jit(jax.value_and_grad(loss))(scores)
    assert value == 0
    np.testing.assert_array_equal(gradient, np.zeros((3, 4)))


@pytest.mark.parametrize("label", [-1, 4])
def test_a_label_that_is_no_class_is_not_counted_as_another(label: int) -> None:
    loss = compute("SoftmaxCrossEntropyLoss", np.zeros((2, 4)), np.asarray([0, label]))[0]
    assert np.isnan(loss)

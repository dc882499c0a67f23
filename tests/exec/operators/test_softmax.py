"""Softmax, its logarithm, and the maximum of rows, over rows of any width."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from hpdlf.exec.operators.softmax import NARROW, log_softmax, row_maximum, softmax

WIDTHS = [1, 2, NARROW, NARROW + 1, 2 * NARROW, 2 * NARROW + 1, 49, 197, 1000]


@pytest.mark.parametrize("width", WIDTHS)
def test_the_maximum_is_wherever_it_is(width: int) -> None:
    """Each place in a row once."""
    x = -2.0 - np.random.default_rng(0).random((width, width)).astype(np.float32)
    np.fill_diagonal(x, -1.0)
    assert np.asarray(row_maximum(x, -1)).tolist() == [[-1.0]] * width
    np.fill_diagonal(x, np.nan)
    assert np.isnan(row_maximum(x, -1)).all()
    np.testing.assert_array_equal(row_maximum(x.T[None, :1], 1), x.T[None, :1])


def test_the_maximum_of_nothing_is_the_lowest_there_is() -> None:
    assert np.asarray(row_maximum(np.zeros((2, 0), np.float32), -1)).tolist() == [[-np.inf]] * 2
    assert np.asarray(row_maximum(np.full((1, 40), -np.inf, np.float32), -1)).tolist() == [[-np.inf]]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("axis", [-1, 1, 2])
@pytest.mark.parametrize("width", WIDTHS)
def test_values_and_gradients_are_those_of_the_definition(width: int, axis: int) -> None:
    rng = np.random.default_rng(0)
    x = 5 * rng.standard_normal((2, 3, width) if axis != 1 else (2, width, 3))
    arrived = rng.standard_normal(x.shape)
    powers = np.exp(x - x.max(axis, keepdims=True))
    wanted = powers / powers.sum(axis, keepdims=True)
    y, backward = jax.vjp(lambda x: softmax(x, axis), x)
    np.testing.assert_allclose(y, wanted, rtol=1e-12)
    into = wanted * (arrived - (wanted * arrived).sum(axis, keepdims=True))
    np.testing.assert_allclose(jax.jit(backward)(arrived)[0], into, rtol=1e-10, atol=1e-13)
    y, backward = jax.vjp(lambda x: log_softmax(x, axis), x)
    np.testing.assert_allclose(y, np.log(wanted), rtol=1e-12, atol=1e-12)
    into = arrived - wanted * arrived.sum(axis, keepdims=True)
    np.testing.assert_allclose(jax.jit(backward)(arrived)[0], into, rtol=1e-10, atol=1e-12)


def test_nothing_is_infinite_where_scores_are_large_or_hidden() -> None:
    x = np.full((3, 40), -np.inf, np.float32)
    x[:, :2] = np.float32([[1e10, 1e10 + 1e4], [3e38, -3e38], [0, -np.inf]])
    y = np.asarray(jax.jit(softmax)(x * np.float32(1)))
    assert np.isfinite(y).all()
    np.testing.assert_allclose(y.sum(-1), 1, rtol=1e-6)

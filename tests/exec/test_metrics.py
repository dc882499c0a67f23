"""Metrics add up, whatever the parts."""

import doctest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpdlf.errors import DataError
from hpdlf.exec import metrics
from hpdlf.exec.metrics import accuracy, mse, value


def test_doctests() -> None:
    assert doctest.testmod(metrics).failed == 0


@given(cuts=st.lists(st.integers(0, 40), max_size=5), seed=st.integers(0, 1000))
def test_parts_add_up_to_the_whole(cuts: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, labels, targets = rng.random((40, 5)), rng.integers(0, 5, 40), rng.random((40, 5))
    parts = np.split(np.arange(40), sorted(cuts))
    np.testing.assert_allclose(sum(accuracy(scores[p], labels[p]) for p in parts), accuracy(scores, labels))
    np.testing.assert_allclose(sum(mse(scores[p], targets[p]) for p in parts), mse(scores, targets))
    assert value(accuracy(scores, labels)) == np.mean(np.argmax(scores, 1) == labels)
    np.testing.assert_allclose(value(mse(scores, targets)), np.mean((scores - targets) ** 2))


def test_padding_and_ignored_labels_do_not_count() -> None:
    scores = np.array([[1, 0], [1, 0], [0, 1.0]])
    assert accuracy(scores, np.array([0, 1, 1]), np.array([True, True, False])).tolist() == [1, 2]
    assert accuracy(scores, np.array([0, -100, 1])).tolist() == [2, 2]
    assert mse(scores, scores + 2, np.array([True, False, False])).tolist() == [8, 2]
    assert value(np.zeros(2)) is None


def test_classes_stand_on_axis_one() -> None:
    scores = np.zeros((2, 3, 4))
    scores[:, 2] = 1
    assert accuracy(scores, np.full((2, 4), 2), np.array([True, False])).tolist() == [4, 4]


def test_what_does_not_belong_together() -> None:
    with pytest.raises(DataError, match="wants scores"):
        accuracy(np.zeros((3, 2)), np.zeros((3, 2)))
    with pytest.raises(DataError, match="wants scores"):
        accuracy(np.zeros((3, 2)), np.zeros(3))
    with pytest.raises(DataError, match="wants targets shaped as"):
        mse(np.zeros((3, 2)), np.zeros(3))


def test_tokens_have_their_classes_last_and_masked_ones_do_not_count() -> None:
    scores = np.zeros((2, 3, 5))
    scores[0, :, 4] = scores[1, :, 2] = 1
    labels = np.array([[4, 4, -100], [0, 2, -100]])
    assert accuracy(scores, labels).tolist() == [3, 4]
    square = np.zeros((1, 2, 2))
    square[0, 0, 1] = square[0, 1, 1] = 1
    assert accuracy(square, np.array([[1, 1]])).tolist() == [2, 2]

import numpy as np
import pytest

from hpdlf.models.cost.trees import Forest


def _stump(threshold: float) -> Forest:
    return Forest(
        depth=1,
        start=1.0,
        thresholds=(np.array([threshold]), np.empty(0)),
        feature=np.zeros((1, 1), np.uint8),
        rank=np.zeros((1, 1), np.uint8),
        leaves=np.array([[0.0, 10.0]], np.float32),
    )


def test_a_row_at_the_threshold_goes_left() -> None:
    rows = np.array([[2.0, 0.0], [np.nextafter(2.0, 3.0), 0.0], [-np.inf, 0.0]])
    assert _stump(2.0).predict(rows).tolist() == [1.0, 11.0, 1.0]


def test_more_rows_than_a_chunk_come_out_in_order() -> None:
    rows = np.column_stack([np.linspace(0, 4, 1001), np.zeros(1001)])
    assert _stump(2.0).predict(rows).tolist() == np.where(rows[:, 0] > 2.0, 11.0, 1.0).tolist()


def test_trees_say_what_scikit_learn_says() -> None:
    ensemble = pytest.importorskip("sklearn.ensemble")
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(3000, 7))
    target = rows[:, 0] * rows[:, 1] + np.sin(3 * rows[:, 2])
    fitted = ensemble.HistGradientBoostingRegressor(
        max_iter=40, max_depth=5, max_leaf_nodes=20, early_stopping=False, random_state=0
    ).fit(rows, target)
    forest = Forest.of(fitted, 5)
    new = rng.normal(size=(500, 7))
    np.testing.assert_allclose(forest.predict(new), fitted.predict(new), atol=1e-5)
    # A file keeps leaves at half precision.
    kept = Forest.from_arrays(forest.arrays())
    np.testing.assert_allclose(kept.predict(new), fitted.predict(new), atol=5e-3)


def test_arrays_that_do_not_fit_together_are_refused() -> None:
    arrays = _stump(1.0).arrays()
    with pytest.raises(ValueError, match="do not fit"):
        Forest.from_arrays({**arrays, "leaves": np.zeros((1, 4))})
    with pytest.raises(ValueError, match="do not fit"):
        Forest.from_arrays({**arrays, "feature": np.full((1, 1), 9, np.uint8)})

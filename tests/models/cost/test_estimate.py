import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpdlf.models.cost import Estimate

positive = st.floats(min_value=1e-9, max_value=1e6)


def estimate(seconds: float, *, joules: float | None = 1.0, provenance: str = "modelled") -> Estimate:
    return Estimate(
        seconds=seconds,
        low_s=seconds / 2,
        high_s=seconds * 2,
        joules=joules,
        low_j=joules,
        high_j=joules,
        provenance=provenance,  # type: ignore[arg-type]
        bound="compute",
    )


@given(positive, positive)
def test_sums_add_linearly_and_keep_the_interval_around_the_value(a: float, b: float) -> None:
    total = estimate(a) + estimate(b)
    assert total.seconds == a + b
    assert total.low_s <= total.seconds <= total.high_s
    assert total.high_s == pytest.approx(2 * (a + b))


def test_a_missing_energy_makes_the_sum_unknown_not_zero() -> None:
    assert (estimate(1.0) + estimate(1.0, joules=None)).joules is None
    assert (estimate(1.0, joules=None) * 3).joules is None


def test_a_sum_is_as_trustworthy_as_its_worst_part() -> None:
    parts = [estimate(1.0, provenance=p) for p in ("measured", "learned")]
    assert sum(parts, start=estimate(0.0, provenance="measured")).provenance == "learned"
    assert sum(parts).seconds == 2.0  # type: ignore[union-attr]


def test_scaling() -> None:
    three = 3 * estimate(2.0)
    assert (three.seconds, three.low_s, three.high_s, three.joules) == (6.0, 3.0, 12.0, 3.0)
    with pytest.raises(ValueError, match="times"):
        estimate(1.0) * -1


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot lie"):
        Estimate(seconds=1.0, low_s=2.0, high_s=3.0, provenance="modelled", bound="memory")


def test_survives_pickling() -> None:
    assert pickle.loads(pickle.dumps(estimate(1.0))) == estimate(1.0)

"""One device's measurements improve its relatives."""

import math
from collections.abc import Callable, Mapping

import pytest

from hpdlf.models.cost import Factor, Factors, Observation
from hpdlf.models.cost.relatives import DEVICE_SHARE, SHARES, Kin, Relatives, Shift, kin_of, related

PRIOR = Factor(value=2.0, spread=0.5)
VARIANCE = DEVICE_SHARE * 0.25
A100 = Kin("A100", "gpu", "nvidia", "ampere")
A30 = Kin("A30", "gpu", "nvidia", "ampere")
A10 = Kin("A10", "gpu", "nvidia", "ampere")
V100 = Kin("V100", "gpu", "nvidia", "volta")
MI100 = Kin("MI100", "gpu", "amd", "cdna1")
XEON = Kin("Xeon", "cpu", "intel", "cascade-lake")


def relatives(shifts: Mapping[Kin, float], *, error: float = 0.0) -> Relatives:
    return Relatives({kin: {"conv": Shift(mean, error)} for kin, mean in shifts.items()})


def test_closer_relatives_share_more() -> None:
    shares = [related(A100, other) for other in (A100, A30, V100, MI100, XEON)]
    assert shares == [1.0, pytest.approx(1.0 - SHARES["own"]), pytest.approx(0.25), 0.15, 0.0]
    assert sum(SHARES.values()) == pytest.approx(1.0)
    unknown = Kin("new", "gpu")
    assert related(A100, unknown) == related(unknown, Kin("newer", "gpu")) == SHARES["kind"]


def test_one_relative_in_closed_form() -> None:
    shift = relatives({A100: 0.4}, error=0.1).shift(A30, "conv", PRIOR)
    assert shift is not None
    share = VARIANCE * 0.7
    weight = share / (VARIANCE + 0.01)
    assert shift.mean == pytest.approx(weight * 0.4)
    assert shift.spread == pytest.approx(math.sqrt(VARIANCE - weight * share + (1 - DEVICE_SHARE) * 0.25))
    assert shift.devices == ("A100",)


def test_many_relatives_pull_towards_their_mean() -> None:
    """n exactly measured devices of an architecture: n / (n + own / shared)."""
    siblings = [Kin(f"A{i}", "gpu", "nvidia", "ampere") for i in range(5)]
    for n in (1, 2, 5):
        shift = relatives(dict.fromkeys(siblings[:n], 0.4)).shift(A30, "conv", PRIOR)
        assert shift is not None
        assert shift.mean == pytest.approx(0.4 * n / (n + 0.30 / 0.70))
        spread = shift.spread
    assert spread < PRIOR.spread
    # What is a device's own nobody else can tell.
    assert spread**2 > (1 - DEVICE_SHARE) * 0.25 + VARIANCE * SHARES["own"]


def test_nearer_relatives_count_more() -> None:
    found = relatives({A100: 0.4, V100: -0.4})
    assert found.factor(A30, "conv", PRIOR).value > PRIOR.value
    assert found.factor(Kin("T4", "gpu", "nvidia", "volta"), "conv", PRIOR).value < PRIOR.value
    by_architecture = relatives({A100: 0.4}).factor(A30, "conv", PRIOR)
    by_vendor = relatives({V100: 0.4}).factor(A30, "conv", PRIOR)
    by_kind = relatives({MI100: 0.4}).factor(A30, "conv", PRIOR)
    assert by_architecture.value > by_vendor.value > by_kind.value > PRIOR.value
    assert by_architecture.spread < by_vendor.spread < by_kind.spread < PRIOR.spread


def test_strangers_and_other_components_say_nothing() -> None:
    found = relatives({A100: 0.4, XEON: 0.9})
    assert found.factor(A30, "matmul", PRIOR) == PRIOR
    assert found.factor(Kin("EPYC", "cpu", "amd", "zen3"), "conv", PRIOR).value == pytest.approx(
        2.0 * math.exp(0.15 * 0.9)
    )
    assert Relatives({}).factor(A30, "conv", PRIOR) == PRIOR


def test_a_device_does_not_speak_for_itself() -> None:
    assert relatives({A100: 0.4}).shift(A100, "conv", PRIOR) is None


def test_from_learned_factors(make_observation: Callable[..., Observation]) -> None:
    rows = [
        make_observation(subject="A100", conditions={"vendor": "nvidia", "architecture": "ampere"}),
        make_observation(subject="A100"),
        make_observation(subject="wire", subject_kind="link"),
    ]
    kin = kin_of(rows)
    assert kin == {"A100": A100}
    factors = Factors(
        prior={"gpu": {"conv": PRIOR, "other": PRIOR}},
        learned={("A100", "conv"): Factor(value=3.0, spread=0.2, observations=100), ("wire", "x"): PRIOR},
    )
    shift = Relatives.of(factors, kin).shift(A30, "conv", PRIOR)
    assert shift is not None
    weight = VARIANCE * 0.7 / (VARIANCE + 0.02**2)
    assert shift.mean == pytest.approx(weight * math.log(1.5))

import math
import random

import numpy as np
import pytest

from hpdlf.models.cost import CostModel, Factor, Factors, Observation, Workload, fit

PRIOR = Factors(
    prior={
        "gpu": {
            "conv": Factor(value=2.0, spread=0.5),
            "elementwise": Factor(value=1.2, spread=0.3),
            "dispatch": Factor(value=1.0, spread=0.5),
            "other": Factor(value=1.5, spread=0.8),
        },
        "link": {"latency": Factor(value=1.0, spread=0.7), "bandwidth": Factor(value=1.0, spread=0.3)},
    }
)


def observed(
    seconds: float, components: dict[str, float], *, key: str = "k", subject: str = "toy", **more: object
) -> Observation:
    fields: dict = {
        "subject": subject,
        "subject_kind": "gpu",
        "kind": "segment",
        "key": key,
        "components": components,
        "seconds": seconds,
        "low_s": seconds,
        "high_s": seconds,
        "run": "r",
    }
    return Observation(**(fields | more))


def synthetic(truth: dict[str, float], n: int, *, noise: float = 0.0, seed: int = 0) -> list[Observation]:
    generator = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        components = {name: float(10 ** generator.uniform(-4, -2)) for name in truth}
        seconds = sum(components[c] * truth[c] for c in truth) * math.exp(noise * generator.standard_normal())
        rows.append(observed(seconds, components, key=str(i)))
    return rows


def test_nothing_observed_is_the_prior() -> None:
    found = fit([], PRIOR)
    assert found.factors.learned == {}
    assert found.reports == ()
    assert found.factors.factor("toy", "gpu", "conv") == PRIOR.prior["gpu"]["conv"]


def test_known_factors_are_recovered() -> None:
    truth = {"conv": 5.0, "elementwise": 0.8, "dispatch": 3.0}
    found = fit(synthetic(truth, 400), PRIOR)
    for name, value in truth.items():
        assert found.factors.factor("toy", "gpu", name).value == pytest.approx(value, rel=0.02)
    report = found.reports[0]
    assert report.after < 0.01 < report.before
    assert report.left_out is not None
    assert report.left_out < 0.01


def test_a_single_observation_of_one_component_in_closed_form() -> None:
    # min ((p x a - t) / (t 0.15))^2 + ((x - 1) / 0.5)^2 with p a / t = 0.5
    found = fit([observed(4.0, {"conv": 1.0})], PRIOR)
    x = (0.5 / 0.15**2 + 1 / 0.5**2) / (0.25 / 0.15**2 + 1 / 0.5**2)
    assert found.factors.factor("toy", "gpu", "conv").value == pytest.approx(2.0 * x)
    assert found.reports[0].left_out is None
    assert found.factors.factor("toy", "gpu", "elementwise") == PRIOR.prior["gpu"]["elementwise"]
    assert found.factors.factor("another", "gpu", "conv") == PRIOR.prior["gpu"]["conv"]


def test_more_observations_move_further_from_the_prior() -> None:
    def factor(n: int) -> float:
        rows = [observed(4.0, {"conv": 1.0}, key=str(i)) for i in range(n)]
        return fit(rows, PRIOR).factors.factor("toy", "gpu", "conv").value

    assert 2.0 < factor(1) < factor(3) < factor(30) < 4.0
    assert factor(30) == pytest.approx(4.0, rel=0.02)


def test_noisy_observations_count_less() -> None:
    sharp = fit([observed(4.0, {"conv": 1.0})], PRIOR).factors.factor("toy", "gpu", "conv")
    vague = fit([observed(4.0, {"conv": 1.0}, low_s=1.0, high_s=9.0)], PRIOR).factors.factor("toy", "gpu", "conv")
    assert 2.0 < vague.value < sharp.value


def test_factors_are_never_negative() -> None:
    rows = [observed(1e-6, {"conv": 1.0, "elementwise": 1e-3}, key="a"), observed(1.0, {"elementwise": 1.0}, key="b")]
    assert all(f.value >= 0 for f in fit(rows, PRIOR).factors.learned.values())


def test_the_order_of_observations_does_not_matter() -> None:
    rows = synthetic({"conv": 3.0, "dispatch": 2.0}, 30, noise=0.1)
    shuffled = rows[:]
    random.Random(1).shuffle(shuffled)
    assert fit(rows, PRIOR) == fit(shuffled, PRIOR)


def test_intervals_cover_nine_in_ten_of_what_was_not_seen() -> None:
    truth, noise = {"conv": 3.0, "elementwise": 2.0}, 0.2
    found = fit(synthetic(truth, 200, noise=noise), PRIOR).factors
    model = CostModel(factors=found)
    inside = 0
    fresh = synthetic(truth, 400, noise=noise, seed=9)
    for o in fresh:
        work = Workload(subject="toy", subject_kind="gpu", kind="segment", key="new", components=o.components)
        estimate = model.price(work)
        assert estimate.provenance == "learned"
        inside += estimate.low_s <= o.seconds <= estimate.high_s
    assert 0.85 <= inside / len(fresh) <= 0.97


def test_repeats_of_the_same_work_count_once() -> None:
    once = [observed(4.0, {"conv": 1.0})]
    thrice = [observed(t, {"conv": 1.0}, run=str(t)) for t in (3.9, 4.0, 4.4)]
    wanted = fit(once, PRIOR).factors.factor("toy", "gpu", "conv").value
    assert fit(thrice, PRIOR).factors.factor("toy", "gpu", "conv").value == pytest.approx(wanted)


def test_links_are_fitted_like_devices() -> None:
    rows = [
        observed(
            n / 5e9 + 1e-5,
            {"all_reduce.latency": 2e-6, "all_reduce.bandwidth": n / 1e10},
            key=str(n),
            subject="wire",
            subject_kind="link",
            kind="collective",
        )
        for n in (*range(100, 2_000, 100), *range(10**8, 10**9, 5 * 10**7))
    ]
    factors = fit(rows, PRIOR).factors
    assert factors.factor("wire", "link", "all_reduce.bandwidth").value == pytest.approx(2.0, rel=0.1)
    assert factors.factor("wire", "link", "all_reduce.latency").value == pytest.approx(5.0, rel=0.1)
    # A link within a node keeps its factors inside a collective that spans nodes.
    assert factors.factor("outer", "link", "wire:all_reduce.latency").value == pytest.approx(5.0, rel=0.1)


def test_a_device_of_which_little_was_measured_starts_from_its_relatives() -> None:
    ampere = {"vendor": "nvidia", "architecture": "ampere"}
    many = [observed(4.0, {"conv": 1.0}, key=str(i), subject="first", conditions=ampere) for i in range(50)]
    one = observed(4.0, {"conv": 1.0}, key="x", subject="second", conditions=ampere)
    stranger = observed(
        4.0, {"conv": 1.0}, key="x", subject="third", conditions={"vendor": "amd", "architecture": "cdna"}
    )
    found = fit([*many, one, stranger], PRIOR).factors
    alone = fit([one], PRIOR).factors.factor("second", "gpu", "conv")
    sibling, other = (found.factor(name, "gpu", "conv") for name in ("second", "third"))
    assert alone.value < other.value < sibling.value < 4.0
    assert found.factor("first", "gpu", "conv").value == pytest.approx(4.0, rel=0.03)

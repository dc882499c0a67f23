"""Between measured points, beyond them, and around them."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from hpdlf.models.cost import Observation, Workload
from hpdlf.models.cost.factors import NINETY
from hpdlf.models.cost.interpolation import (
    LOCAL_LENGTH,
    LOCAL_SHARE,
    LOCAL_SPREAD,
    PARTS_SHARE,
    REPEAT_SPREAD,
    SHAPE_LENGTH,
    Anchored,
    Anchors,
    _around,
    _kriged,
)
from hpdlf.models.cost.operation import Operation

Make = Callable[..., Observation]
Modelled = Callable[[Workload], tuple[float, float, float]]
FLAT = (1.0, math.exp(-NINETY * 0.3), math.exp(NINETY * 0.3))


def product(*dims: int) -> Operation:
    return Operation(family="matmul", op="linear", dims=dims, flops=1.0, read_bytes=1.0, write_bytes=1.0)


def work(*operations: Operation, key: str = "") -> Workload:
    key = key or " ".join(str(o.dims) for o in operations)
    return Workload(
        subject="toy", subject_kind="gpu", kind="segment", key=key, components={"matmul": 1.0}, operations=operations
    )


def at(batch: int) -> Workload:
    return work(product(1, batch, 64, 32), product(1, 32, 64, batch))


def seen(make: Make, workload: Workload, seconds: float) -> Observation:
    fields = {"key": workload.key, "operations": workload.operations, "components": workload.components}
    return make(seconds, low_s=seconds, high_s=seconds, **fields)


def on(modelled: Modelled) -> Callable[[Observation], float]:
    return lambda observation: modelled(observation.workload)[0]


def model(times: Callable[[int], float], spread: float = 0.3) -> Modelled:
    def modelled(workload: Workload) -> tuple[float, float, float]:
        seconds = times(workload.operations[0].dims[1])
        return seconds, seconds * math.exp(-NINETY * spread), seconds * math.exp(NINETY * spread)

    return modelled


def estimate(make: Make, seconds: dict[int, float], batch: int, modelled: Modelled) -> Anchored:
    found = Anchors(seen(make, at(b), t) for b, t in seconds.items()).estimate(
        at(batch), modelled(at(batch)), on(modelled)
    )
    assert found is not None
    assert found.low_s <= found.seconds <= found.high_s
    return found


def test_nothing_near_by_is_nothing(make_observation: Make) -> None:
    anchors = Anchors([seen(make_observation, at(8), 1.0)])
    assert anchors.estimate(work(product(1, 8, 64, 32)), (1.0, 0.5, 2.0), float) is None


def test_one_anchor_scales_the_model(make_observation: Make) -> None:
    """The model is right but for a factor of 3: so it is at nearly every size, less certainly the further away."""
    modelled = model(lambda b: 0.5 + 0.1 * b)
    widths = []
    for batch in (8, 16, 64, 512):
        found = estimate(make_observation, {8: 3 * 1.3}, batch, modelled)
        assert found.seconds == pytest.approx(3 * modelled(at(batch))[0], rel=0.15)
        assert found.inside == (batch == 8)
        widths.append(found.high_s / found.low_s)
    assert widths == sorted(widths)


def test_two_anchors_place_a_straight_line(make_observation: Make) -> None:
    """The model knows of no constant part; time has one."""
    modelled = model(lambda b: 1e-3 * b)
    truth = {b: 0.09 + 0.012 * b for b in (4, 8, 16, 32)}
    ends = {b: truth[b] for b in (4, 32)}
    for batch in (8, 16):
        found = estimate(make_observation, ends, batch, modelled)
        assert found.inside
        assert found.anchors == 2
        assert found.seconds == pytest.approx(truth[batch], rel=0.03)
        assert found.low_s < truth[batch] < found.high_s
    beyond = estimate(make_observation, ends, 64, modelled)
    assert not beyond.inside
    assert beyond.seconds == pytest.approx(0.09 + 0.012 * 64, rel=0.05)


def test_more_anchors_bend_the_line(make_observation: Make) -> None:
    """A step between 16 and 32, as waves of tiles make it, that no model knows of."""
    modelled = model(lambda b: 1.0 * b)
    steps = {8: 1.0, 16: 1.05, 32: 2.0, 64: 4.0}
    assert 1.0 <= estimate(make_observation, steps, 12, modelled).seconds <= 1.05
    assert estimate(make_observation, steps, 24, modelled).seconds == pytest.approx(1.5, rel=0.1)


def test_where_model_and_straight_line_differ_the_interval_is_wide(make_observation: Make) -> None:
    ends = {8: 1.0, 64: 4.0}
    linear = estimate(make_observation, ends, 32, model(lambda b: 1.0 + 3.0 * (b - 8) / 56))
    stepped = estimate(make_observation, ends, 32, model(lambda b: 1.0 if b < 32 else 4.0))
    assert linear.seconds == pytest.approx(1.0 + 3.0 * 24 / 56, rel=0.01)
    assert stepped.seconds > 3.0
    assert stepped.high_s / stepped.low_s > 1.3 * linear.high_s / linear.low_s


@pytest.mark.parametrize("batch", [3, 4, 7, 12, 20, 31, 40, 200])
def test_time_never_falls_as_work_grows_nor_outgrows_it(make_observation: Make, batch: int) -> None:
    """Whatever the model says."""
    measured = {4: 1.0, 32: 2.0}
    for modelled in (model(lambda b: 1.0 / b), model(lambda b: float(b) ** 3), model(lambda b: 1.0)):
        found = estimate(make_observation, measured, batch, modelled)
        if batch < 4:
            least, most = batch / 4, 1.0
        elif batch > 32:
            least, most = 2.0, 2.0 * batch / 32
        else:
            least, most = max(1.0, 2.0 * batch / 32), min(2.0, batch / 4)
        assert least * (1 - 1e-9) <= found.seconds <= most * (1 + 1e-9)


def test_kriging_of_one_anchor_in_closed_form() -> None:
    variance, covariance, noise = 0.09, 0.06, 0.03
    factor, sd = _kriged(np.array([[0.09, covariance], [covariance, variance]]), np.array([2.0]), np.array([noise]))
    weight = covariance / (variance + noise**2)
    assert factor == pytest.approx(2.0**weight)
    assert sd == pytest.approx(math.sqrt(0.09 - weight * covariance + REPEAT_SPREAD**2))


def test_along_sizes_in_closed_form(make_observation: Make) -> None:
    """One anchor of half the size, a model that says the same of both."""
    found = estimate(make_observation, {8: 1.0}, 16, model(lambda b: 1.0, spread=0.3))
    noise = REPEAT_SPREAD**2
    local = LOCAL_SPREAD**2 + (LOCAL_SHARE * 0.3) ** 2
    variance = 0.09 * (1 + 2 * PARTS_SHARE**2) + local
    covariance = 0.09 * (1 + PARTS_SHARE**2 * (1 + 2)) + local * math.exp(-math.log(2) / LOCAL_LENGTH)
    own = 0.09 * (1 + PARTS_SHARE**2 * (1 + 4)) + local
    weight = covariance / (variance + noise)
    assert found.seconds == 1.0
    sd = math.sqrt(own - weight * covariance + noise)
    assert found.low_s == pytest.approx(max(math.exp(-NINETY * sd), math.exp(-NINETY * REPEAT_SPREAD)))
    assert found.high_s == pytest.approx(min(math.exp(NINETY * sd), 2 * math.exp(NINETY * REPEAT_SPREAD)))


def test_other_shapes_fade_to_the_model(make_observation: Make) -> None:
    """Measured at three times the model: with the distance, three becomes one."""
    anchors = Anchors([seen(make_observation, work(product(1, 64, 64, 64)), 3.0)])
    seconds = []
    for size in (96, 256, 4096):
        found = anchors.estimate(work(product(1, size, size, 64)), FLAT, lambda o: 1.0)
        assert found is not None
        assert not found.inside
        distance, spread = 2 * math.log(size / 64), math.log(3)
        weight = spread**2 * math.exp(-distance / SHAPE_LENGTH) / (spread**2 + REPEAT_SPREAD**2)
        assert found.seconds == pytest.approx(3.0**weight)
        seconds.append(found.seconds)
    assert seconds == sorted(seconds, reverse=True)
    assert seconds[-1] < 1.1


def test_shapes_with_measured_ones_around_are_inside(make_observation: Make) -> None:
    corners = [work(product(1, m, n, k)) for m in (32, 128) for n in (32, 128) for k in (32, 128)]
    anchors = Anchors(seen(make_observation, c, 2.0) for c in corners)
    within = anchors.estimate(work(product(1, 64, 48, 96)), FLAT, lambda o: 1.0)
    beyond = anchors.estimate(work(product(1, 64, 48, 192)), FLAT, lambda o: 1.0)
    assert within is not None
    assert beyond is not None
    assert (within.inside, beyond.inside) == (True, False)
    assert within.seconds == pytest.approx(2.0, rel=0.1)


def test_the_hull_agrees_with_a_linear_program() -> None:
    from scipy.optimize import linprog

    generator = np.random.default_rng(3)
    answers = set()
    for case in range(200):
        n, dims = int(generator.integers(1, 9)), int(generator.integers(1, 4))
        points = generator.normal(size=(n, dims)) + generator.normal(size=dims) * 0.5
        system = np.vstack([points.T, np.ones(n)])
        feasible = linprog(np.zeros(n), A_eq=system, b_eq=[*np.zeros(dims), 1.0], bounds=(0, None)).status == 0
        assert _around(points) == feasible, case
        answers.add(feasible)
    assert answers == {True, False}


def test_messages_are_interpolated_by_their_size(make_observation: Make) -> None:
    def message(n: int) -> Workload:
        return Workload(
            subject="wire",
            subject_kind="link",
            kind="transfer",
            key=f"transfer:{n}",
            components={"transfer.bandwidth": n},
        )

    def measured(n: int) -> Observation:
        fields: dict = {
            "subject": "wire",
            "subject_kind": "link",
            "kind": "transfer",
            "components": {"transfer.bandwidth": 1.0},
        }
        return make_observation(1e-5 + n / 1e9, key=f"transfer:{n}", **fields)

    def modelled(workload: Workload) -> tuple[float, float, float]:
        seconds = 1e-6 + int(workload.key.split(":")[1]) / 2e9
        return seconds, seconds / 2, seconds * 2

    anchors = Anchors(measured(n) for n in (1_000, 10_000, 1_000_000))
    found = anchors.estimate(message(100_000), modelled(message(100_000)), on(modelled))
    assert found is not None
    assert found.inside
    assert found.seconds == pytest.approx(1e-5 + 1e-4, rel=0.1)


def test_order_does_not_matter(make_observation: Make) -> None:
    measured = [seen(make_observation, at(b), 0.1 + 0.02 * b) for b in (4, 8, 32, 64)]
    modelled = model(lambda b: 0.01 * b)
    there, back = (
        Anchors(rows).estimate(at(16), modelled(at(16)), on(modelled)) for rows in (measured, measured[::-1])
    )
    assert there == back

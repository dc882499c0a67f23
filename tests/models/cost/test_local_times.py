"""What measurements of one processor teach: constants from few, dependence on sizes from many, sums taken apart."""

import math
import random

import numpy as np
import pytest

from hpdlf.models.cost.cpu_terms import CpuTerms, generic, lowering_of, terms
from hpdlf.models.cost.local_times import CALL, LocalTimes, Measured
from hpdlf.models.cost.operation import Operation

TERMS = CpuTerms.default()


def product(m, n=256, k=256, phase="forward"):
    sizes = m * k + k * n, m * n
    return Operation(
        family="matmul",
        op="linear",
        dims=(1, m, n, k),
        flops=2.0 * m * n * k,
        read_bytes=4.0 * sizes[0],
        write_bytes=4.0 * sizes[1],
        phase=phase,
    )


def relu(rows, columns=512):
    moved = 4.0 * rows * columns
    return Operation(
        family="elementwise", op="relu", dims=(rows, columns), flops=moved / 4, read_bytes=moved, write_bytes=moved
    )


def conv(n=4, c=32, k=64, r=3, p=16, groups=1, phase="forward", op="conv"):
    return Operation(
        family="conv",
        op=op,
        dims=(n, c, k, r, r, p, p, 1, groups),
        flops=2.0 * n * p * p * c // groups * k * r * r,
        read_bytes=4.0 * (n * c * p * p + c * k * r * r),
        write_bytes=4.0 * n * k * p * p,
        phase=phase,
    )


def total(parts):
    return sum(part.seconds for part in parts.values())


def base(*operations):
    return sum(TERMS.seconds(o) for o in operations)


def test_convolutions_are_grouped_by_what_bears_on_their_time():
    for sizes, group in (
        ({"r": 1}, "matmul"),
        ({"r": 3, "c": 3, "p": 56}, "im2col"),
        ({"r": 3, "c": 64, "p": 7}, "im2col"),
        ({"r": 3, "c": 64, "p": 56}, "xla"),
        ({"r": 3, "c": 64, "p": 16, "phase": "backward_weight"}, "taps"),
        ({"r": 3, "c": 64, "groups": 64}, "depthwise"),
        ({"r": 3, "c": 64, "groups": 4}, "grouped"),
    ):
        assert lowering_of(conv(**sizes)) == group, sizes


def test_every_term_is_a_time_and_grows_with_the_work():
    for small, large in ((product(64), product(128)), (relu(64), relu(256)), (conv(p=16), conv(p=32))):
        group, few = terms(small)
        again, many = terms(large)
        assert group == again
        assert all(0.0 <= few[name] <= many[name] for name in few)
    assert TERMS.seconds(product(512)) > TERMS.seconds(product(256)) > 0


def test_a_kind_that_was_never_timed_is_like_its_family():
    erf = Operation(family="elementwise", op="erf", dims=(64, 64), flops=1e4, read_bytes=1e4, write_bytes=1e4)
    assert generic(terms(erf)[0]) == "elementwise * forward"
    assert TERMS.seconds(erf) > 0
    strange = Operation(family="rnn", op="lstm", dims=(1, 8, 8, 8), flops=1e4, read_bytes=1e4, write_bytes=1e4)
    assert CpuTerms({}).seconds(strange) is None


def test_one_measurement_moves_everything_by_its_factor():
    segment = (product(512), relu(512))
    times = LocalTimes.fit([Measured(operations=segment, seconds=2.0 * base(*segment), noise=0.01)])
    assert total(times.estimate(segment)) == pytest.approx(2.0 * base(*segment), rel=0.05)
    elsewhere = (conv(p=32),)
    assert 1.4 < total(times.estimate(elsewhere)) / base(*elsewhere) < 2.1
    near, far = times.estimate(segment)["matmul"].spread, times.estimate(elsewhere)["conv"].spread
    assert near < far


def test_many_measurements_show_how_the_factor_depends_on_sizes():
    def truth(m):
        return base(product(m)) * (1.0 + 0.5 * math.sin(math.log2(m)))

    sizes = [2 ** (4 + i / 4) for i in range(29)]
    rows = [Measured(operations=(product(round(m)),), seconds=truth(round(m)) + 1.2e-5, noise=0.01) for m in sizes]
    times = LocalTimes.fit(rows)
    for m in (90, 200, 777):
        assert times.estimate((product(m),))["matmul"].seconds == pytest.approx(truth(m), rel=0.07)
    assert times.quality.after < 0.02 < times.quality.before
    assert times.quality.left_out < 0.08


def test_sums_are_taken_apart():
    """Segments of products and activations in different proportions tell how much slower each is."""
    rows = []
    for m in (64, 128, 256, 512, 1024):
        for r in (64, 512, 4096):
            operations = (product(m), relu(r))
            seconds = 1.5 * base(product(m)) + 3.0 * base(relu(r)) + 1.2e-5
            rows.append(Measured(operations=operations, seconds=seconds, noise=0.01))
    times = LocalTimes.fit(rows)
    alone = {o.family: total({CALL: times.estimate((o,))[o.family]}) / base(o) for o in (product(300), relu(2000))}
    assert alone["matmul"] == pytest.approx(1.5, rel=0.1)
    assert alone["elementwise"] == pytest.approx(3.0, rel=0.15)


def test_order_does_not_matter_and_outliers_count_less():
    rows = [
        Measured(operations=(product(m),), seconds=base(product(m)) + 1.2e-5, noise=0.02) for m in range(100, 1000, 50)
    ]
    disturbed = [
        *rows[:9],
        Measured(operations=rows[9].operations, seconds=8.0 * rows[9].seconds, noise=0.02),
        *rows[10:],
    ]
    shuffled = random.Random(1).sample(disturbed, len(disturbed))
    a, b = LocalTimes.fit(disturbed), LocalTimes.fit(shuffled)
    asked = (product(560),)
    assert total(a.estimate(asked)) == pytest.approx(total(b.estimate(asked)), rel=1e-9)
    assert total(a.estimate(asked)) == pytest.approx(base(*asked), rel=0.2)


def test_intervals_cover():
    draw = np.random.default_rng(0)
    scale = {m: math.exp(draw.normal(0.2, 0.1)) for m in range(64, 1600, 16)}
    sizes = list(scale)
    rows = [
        Measured(operations=(product(m),), seconds=scale[m] * base(product(m)) + 1.2e-5, noise=0.02) for m in sizes[::2]
    ]
    times = LocalTimes.fit(rows)
    inside = 0
    for m in sizes[1::2]:
        part = times.estimate((product(m),))["matmul"]
        inside += abs(math.log(part.seconds / (scale[m] * base(product(m))))) < 1.645 * part.spread
    assert inside / len(sizes[1::2]) > 0.7


def test_what_is_not_known_is_refused():
    strange = Operation(family="rnn", op="lstm", dims=(1, 8, 8, 8), flops=1e4, read_bytes=1e4, write_bytes=1e4)
    few = CpuTerms({"matmul linear forward": {"f": 1.0}})
    times = LocalTimes.fit([Measured(operations=(product(64),), seconds=1e-4, noise=0.1)], few)
    assert times.estimate((product(64), strange)) == {}
    assert times.estimate(()) == {}
    assert not LocalTimes.fit([Measured(operations=(strange,), seconds=1e-4, noise=0.1)], few).learned

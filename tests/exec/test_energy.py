"""Energy counted over a block, from counters that we turn ourselves."""

import time

import pytest

from hpdlf.exec.energy import EnergyCount
from hpdlf.exec.energy_meters import Meter, Meters


def test_the_difference_over_all_counters() -> None:
    first, second = iter([5.0, 8.0]), iter([100.0, 101.5])
    meters = Meters(
        (Meter("a", "cpu", lambda: next(first)), Meter("b", "gpu", lambda: next(second))), ("RAPL: none",)
    )
    with EnergyCount(meters) as energy:
        assert energy.energy_j is None
    assert energy.energy_j == pytest.approx(4.5)
    assert energy.unavailable == ["RAPL: none"]


def test_counters_are_read_meanwhile_so_that_they_notice_their_turns() -> None:
    reads = []
    meter = Meter("a", "cpu", lambda: reads.append(1) or float(len(reads)))
    with EnergyCount(Meters((meter,), ()), read_s=0.01):
        deadline = time.monotonic() + 5
        while len(reads) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert len(reads) >= 5


def test_no_counter_is_no_number_but_a_reason() -> None:
    with EnergyCount(Meters((), ("RAPL: hidden", "NVML: no driver"))) as energy:
        pass
    assert energy.energy_j is None
    assert energy.unavailable == ["RAPL: hidden", "NVML: no driver"]


def test_a_counter_that_stops_answering() -> None:
    values = iter([1.0])

    def read_j() -> float:
        try:
            return next(values)
        except StopIteration:
            raise OSError("gone") from None

    with EnergyCount(Meters((Meter("package-0", "cpu", read_j),), ())) as energy:
        pass
    assert energy.energy_j is None
    assert energy.unavailable == ["package-0: stopped answering (gone)"]

"""Computing and collectives that hold each other up, against what one can work out on paper."""

from __future__ import annotations

from itertools import pairwise

import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st

from hpdlf.sim.competing import Competition, Device


def competition_of(computing: float, collective: float) -> tuple[simpy.Environment, Competition]:
    env = simpy.Environment()
    return env, Competition(env, computing_share=computing, collective_share=collective)


def ends(env: simpy.Environment, **events: simpy.Event) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, event in events.items():
        assert event.callbacks is not None
        event.callbacks.append(lambda _, name=name: found.setdefault(name, env.now))
    env.run()
    return found


def test_alone_everything_takes_its_time() -> None:
    env, competition = competition_of(0.5, 0.5)
    a, b = Device(), Device()
    events = {"compute": competition.compute(a, 2.0), "collective": competition.transfer(3.0, devices=[b])}
    assert ends(env, **events) == {"compute": 2.0, "collective": 3.0}


def test_both_sides_pay_while_both_go_on() -> None:
    """Computing for 2 s at 0.8, a collective of 3 s at 0.5: computing ends at 2.5, of the collective 1.75 s are left."""
    env, competition = competition_of(0.8, 0.5)
    device = Device()
    events = {"compute": competition.compute(device, 2.0), "collective": competition.transfer(3.0, devices=[device])}
    assert ends(env, **events) == pytest.approx({"compute": 2.5, "collective": 4.25})


def test_a_collective_is_as_slow_as_its_busiest_member() -> None:
    """One of two devices computes for 1 s at 0.5: for 2 s the collective goes at half its speed, then alone."""
    env, competition = competition_of(0.5, 0.5)
    a, b = Device(), Device()
    events = {"compute": competition.compute(a, 1.0), "collective": competition.transfer(3.0, devices=[a, b])}
    assert ends(env, **events) == pytest.approx({"compute": 2.0, "collective": 4.0})


def test_two_collectives_hold_computing_up_once() -> None:
    env, competition = competition_of(0.5, 1.0)
    device = Device()
    events = {
        "compute": competition.compute(device, 2.0),
        "short": competition.transfer(1.0, devices=[device]),
        "long": competition.transfer(2.0, devices=[device]),
    }
    assert ends(env, **events) == pytest.approx({"short": 1.0, "long": 2.0, "compute": 3.0})


def test_computing_that_cannot_go_on_stands_still() -> None:
    env, competition = competition_of(0.0, 1.0)
    device = Device()
    events = {"collective": competition.transfer(1e6, devices=[device]), "compute": competition.compute(device, 1e-6)}
    assert ends(env, **events) == pytest.approx({"collective": 1e6, "compute": 1e6 + 1e-6}, rel=1e-12)


def test_what_takes_no_time_ends_at_once_even_where_nothing_goes_on() -> None:
    env, competition = competition_of(0.0, 0.5)
    device = Device()
    events = {"collective": competition.transfer(1.0, devices=[device]), "compute": competition.compute(device, 0.0)}
    assert ends(env, **events)["compute"] == 0.0


@settings(max_examples=100, deadline=None)
@given(
    computing=st.lists(st.floats(0.01, 5.0), min_size=1, max_size=4),
    collectives=st.lists(st.tuples(st.floats(0.0, 8.0), st.floats(0.01, 5.0)), max_size=4),
    share=st.floats(0.05, 1.0),
    other=st.floats(0.05, 1.0),
)
def test_time_lost_is_what_overlapped(
    computing: list[float], collectives: list[tuple[float, float]], share: float, other: float
) -> None:
    """One task after the other computes; it loses the share that is not its own of every second in which a collective runs."""
    env, competition = competition_of(share, other)
    device = Device()
    busy: list[tuple[float, float]] = []
    spans: list[tuple[float, float]] = []

    def compute() -> object:
        for seconds in computing:
            start_s = env.now
            yield competition.compute(device, seconds)
            busy.append((start_s, env.now))

    def collect(at_s: float, seconds: float) -> object:
        yield env.timeout(at_s)
        start_s = env.now
        yield competition.transfer(seconds, devices=[device])
        spans.append((start_s, env.now))

    env.process(compute())  # type: ignore[arg-type]
    for at_s, seconds in collectives:
        env.process(collect(at_s, seconds))  # type: ignore[arg-type]
    env.run()
    edges = sorted({t for span in spans for t in span} | {t for span in busy for t in span})
    both_s = sum(
        b - a
        for a, b in pairwise(edges)
        if any(s <= a and b <= e for s, e in spans) and any(s <= a and b <= e for s, e in busy)
    )
    assert busy[-1][1] == pytest.approx(sum(computing) + (1.0 - share) * both_s, rel=1e-6, abs=1e-9)
    for (start_s, end_s), seconds in zip(sorted(spans), [s for _, s in sorted(collectives)], strict=True):
        assert end_s - start_s >= seconds * (1 - 1e-9)
        assert end_s - start_s <= seconds / other * (1 + 1e-9)

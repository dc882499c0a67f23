"""Sharing of links against what one can work out on paper, and which links a transfer uses."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace

import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st

from hpdlf.errors import PlanError
from hpdlf.hwprofiles import Quantity, load_cluster
from hpdlf.hwprofiles.topology import Port
from hpdlf.sim.network import Network, fair_rates, shares_of

Start = tuple[float, float, Mapping[Hashable, float]]


def ends(starts: Sequence[Start]) -> list[float]:
    """When flows end that start at (start, seconds alone, shares)."""
    env = simpy.Environment()
    network = Network(env)
    found = [0.0] * len(starts)

    def send(i: int, start: Start) -> simpy.events.ProcessGenerator:
        begin_s, seconds, shares = start
        yield env.timeout(begin_s)
        found[i] = yield network.flow(seconds, shares)

    for i, start in enumerate(starts):
        env.process(send(i, start))
    env.run()
    return found


def test_a_flow_alone_takes_its_time_to_the_bit() -> None:
    assert ends([(0.1, 0.7, {"a": 1.0, "b": 0.3})]) == [0.1 + 0.7]
    assert ends([(0.0, 0.0, {"a": 1.0}), (0.0, 0.0, {})]) == [0.0, 0.0]


def test_two_equal_flows_take_twice_as_long() -> None:
    assert ends([(0.0, 1.0, {"a": 1.0})] * 2) == pytest.approx([2.0, 2.0])


def test_a_short_flow_delays_a_long_one_by_its_own_length() -> None:
    assert ends([(0.0, 3.0, {"a": 1.0}), (0.0, 1.0, {"a": 1.0})]) == pytest.approx([4.0, 2.0])


def test_a_flow_that_comes_later_shares_what_is_left() -> None:
    # The first is half done at 1 s; each then gets half: the second ends at 3 s, and so does the first.
    assert ends([(0.0, 2.0, {"a": 1.0}), (1.0, 1.0, {"a": 1.0})]) == pytest.approx([3.0, 3.0])


def test_flows_on_different_links_and_light_flows_do_not_meet() -> None:
    assert ends([(0.0, 1.0, {"a": 1.0}), (0.0, 2.0, {"b": 1.0})]) == [1.0, 2.0]
    assert ends([(0.0, 1.0, {"a": 0.5}), (0.25, 1.5, {"a": 0.5})]) == [1.0, 1.75]


def test_max_min_fairness_on_two_links() -> None:
    """Flow 0 crosses both links, flows 1 and 2 the first, flow 3 the second: a third each on the first, the rest of the
    second (two thirds) for flow 3."""
    rates = fair_rates([{"a": 1.0, "b": 1.0}, {"a": 1.0}, {"a": 1.0}, {"b": 1.0}])
    assert rates == pytest.approx([1 / 3, 1 / 3, 1 / 3, 2 / 3])


def test_who_needs_little_keeps_it() -> None:
    """Half of a link and all of it: the one that needs half has its half, as of two equal cables."""
    assert fair_rates([{"a": 0.5}, {"a": 1.0}]) == pytest.approx([1.0, 0.5])
    assert fair_rates([{"a": 0.2}, {"a": 1.0}, {"a": 1.0}]) == pytest.approx([1.0, 0.4, 0.4])


def test_what_cannot_be_is_refused() -> None:
    network = Network(simpy.Environment())
    with pytest.raises(PlanError, match=r"-1\.0 s cannot be"):
        network.flow(-1.0, {})
    with pytest.raises(PlanError, match=r"1\.5 of a"):
        network.flow(1.0, {"a": 1.5})


SHARES = st.dictionaries(st.sampled_from("abcd"), st.floats(0.05, 1.0), max_size=3)


@given(st.lists(SHARES, min_size=1, max_size=8))
def test_no_link_is_overfull_and_nobody_could_be_faster_alone(flows: list[dict[Hashable, float]]) -> None:
    rates = fair_rates(flows)
    used = {link: sum(s.get(link, 0.0) * r for s, r in zip(flows, rates, strict=True)) for link in "abcd"}
    assert all(total <= 1.0 + 1e-6 for total in used.values())
    for shares, rate in zip(flows, rates, strict=True):
        assert 0.0 < rate <= 1.0
        assert rate == 1.0 or any(used[link] >= 1.0 - 1e-6 for link in shares)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0.0, 3.0), st.floats(0.0, 3.0), SHARES), min_size=1, max_size=6))
def test_work_is_conserved(starts: list[Start]) -> None:
    """Nobody ends before their time alone, and no link carries more than all the time from the first start to the last
    end allows."""
    found = ends(starts)
    for (begin_s, seconds, _), end_s in zip(starts, found, strict=True):
        assert end_s >= begin_s + seconds - 1e-9
    for link in "abcd":
        work = [(b, s * shares[link], e) for (b, s, shares), e in zip(starts, found, strict=True) if link in shares]
        if work:
            assert sum(w for _, w, _ in work) <= max(e for *_, e in work) - min(b for b, *_ in work) + 1e-6


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0.0, 3.0), st.floats(0.01, 3.0)), min_size=1, max_size=6))
def test_one_link_is_never_idle_while_somebody_waits(starts: list[tuple[float, float]]) -> None:
    """All flows need the whole link, so the last ends when a queue would have ended."""
    found = ends([(begin_s, seconds, {"a": 1.0}) for begin_s, seconds in starts])
    clock = 0.0
    for begin_s, seconds in sorted(starts):
        clock = max(clock, begin_s) + seconds
    assert max(found) == pytest.approx(clock)


def test_a_message_uses_one_adapter_on_either_side() -> None:
    pod = load_cluster("dgx-a100:4")
    found = shares_of("send", 10**9, (0, 8), pod)
    assert set(found) == {Port("adapters", 0, False), Port("adapters", 1, True)}
    assert found[Port("adapters", 0, False)] == pytest.approx(1 / 8, rel=0.01)
    eight = shares_of("send", 10**9, (0, 8), pod, siblings=8)
    assert eight[Port("adapters", 0, False)] == pytest.approx(1.0, rel=0.01)
    assert set(shares_of("send", 10**9, (0, 1), pod)) == {Port("device", 0, False), Port("device", 1, True)}


def test_a_collective_over_nodes_uses_all_adapters_when_all_do_it() -> None:
    pod = load_cluster("dgx-a100:4")
    everybody = shares_of("all_reduce", 1e9, tuple(range(32)), pod, present=(0,))
    assert everybody[Port("adapters", 0, False)] > 0.9
    assert 0.3 < everybody[Port("device", 0, True)] < 1.0  # NVLink is faster than the network and waits for it
    assert not any(port.number for port in everybody)
    one, eight = (shares_of("all_gather", 1e9, (0, 8, 16, 24), pod, siblings=n, present=(0,)) for n in (1, 8))
    port = Port("adapters", 0, False)
    assert eight[port] == pytest.approx(8 * one[port])
    assert shares_of("all_reduce", 0, (0, 1), pod) == shares_of("all_reduce", 1e6, (0,), pod) == {}


def test_oversubscribed_switches_are_links_too() -> None:
    twice = {"2": Quantity(value=2.0, unit="1", source="test", tier="modelled")}
    pod = replace(load_cluster("dgx-a100:4"), oversubscription=twice)
    up = Port("switch", 0, False, 2)
    assert up not in shares_of("send", 10**8, (0, 8), pod)
    assert shares_of("send", 10**8, (0, 16), pod)[up] == pytest.approx(1 / 8, rel=0.02)
    assert shares_of("all_to_all", 1e9, tuple(range(32)), pod, present=(0,))[up] > 0.9

"""What an asynchronous rank misses, where one can count it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hpdlf.models.onnxpp import Graph
from hpdlf.models.program import Program
from hpdlf.sim.engine import replay
from hpdlf.sim.staleness import staleness

Lower = Callable[..., Program]


def missed(program: Program, slowness: dict[int, float], steps: int = 6) -> dict[int, list[int]]:
    seconds = {
        r: {i.id: slowness.get(r, 1.0) * bool(i.parts) for i in program.role_of(r).instructions}
        for r in range(program.mesh.size)
    }
    found: dict[int, list[int]] = {}
    for update in staleness(replay(program, seconds, steps=steps)):
        found.setdefault(update.rank, []).append(update.missed)
    return found


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_equal_ranks_miss_one_update_of_every_other(
    make_chain: Callable[..., Graph], lower_network: Lower, ranks: int
) -> None:
    """Once under way: in the first step all read the same, and those who write later miss those who wrote before."""
    found = missed(lower_network(make_chain(2), batch=8, data=ranks, solver="asynchronous"), {})
    assert {tuple(later) for _, *later in found.values()} == {(ranks - 1,) * 5}
    assert [first for first, *_ in found.values()] == list(range(ranks))


def test_a_slow_rank_misses_more(make_chain: Callable[..., Graph], lower_network: Lower) -> None:
    """While it computes once, each of three others updates twice."""
    program = lower_network(make_chain(2), batch=8, data=4, solver="asynchronous")
    found = missed(program, {3: 2.0}, steps=8)
    assert found[3][1:4] == [6, 6, 6]
    assert max(found[0]) == 3


def test_who_waits_for_all_misses_nothing(make_chain: Callable[..., Graph], lower_network: Lower) -> None:
    assert missed(lower_network(make_chain(2), batch=8, data=4), {}) == {}

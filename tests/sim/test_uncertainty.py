"""Errors drawn together: one family, two families, what is shared and what is not, and the two ways to a step's bounds."""

from __future__ import annotations

import math
from importlib import import_module

import numpy as np
import pytest

from hpdlf.hwprofiles import load_cluster
from hpdlf.models.cost.factors import NINETY
from hpdlf.models.onnxpp import Graph
from hpdlf.models.plan import Strategy
from hpdlf.sim import simulate
from hpdlf.sim.uncertainty import SHARED, Part, bounds_of, makeup


def parts(family: str, seconds: float, spread: float, software: str = "products") -> list[Part]:
    return [Part(family, software, seconds, spread)]


def test_prices_of_one_family_err_together_and_of_two_apart() -> None:
    same = makeup({i: parts("a", 1.0, 0.2) for i in range(50)}, software={})
    apart = makeup({i: parts(f"family {i}", 1.0, 0.2) for i in range(50)}, software={})
    weights = dict.fromkeys(range(50), 0.02)
    assert same.spread(weights) == pytest.approx(0.2 * math.sqrt(SHARED + (1 - SHARED) / 50))
    assert apart.spread(weights) == pytest.approx(0.2 / math.sqrt(50))


def test_a_framework_errs_in_all_families_alike() -> None:
    found = makeup({i: parts(f"family {i}", 1.0, 0.0) for i in range(4)}, software={"products": 0.15, "rows": 0.3})
    assert found.spread(dict.fromkeys(range(4), 0.25)) == pytest.approx(0.15)


def test_draws_have_the_spread_that_first_order_says_and_the_median_of_the_prices() -> None:
    found = makeup({"a": parts("a", 3.0, 0.2), "b": parts("b", 1.0, 0.1, "rows")}, software={"rows": 0.1})
    sums = np.array([sum(draw.values()) for draw in found.draws(4000, seed=3)])
    assert np.log(sums / 4.0).std() == pytest.approx(found.spread({"a": 0.75, "b": 0.25}), rel=0.05)
    assert np.median(sums) == pytest.approx(4.0, rel=0.02)
    low, high = bounds_of(4.0, sums.tolist())
    assert np.mean((sums > low) & (sums < high)) == pytest.approx(0.9, abs=0.02)
    assert found.draws(4, seed=3) == found.draws(4, seed=3)


def test_what_is_certain_has_no_width() -> None:
    found = makeup({"a": parts("a", 1.0, 0.0)}, software={})
    assert found.bounds({"a": 1.0}) == (1.0, 1.0)
    assert bounds_of(1.0, [draw["a"] for draw in found.draws()]) == (1.0, 1.0)


def test_a_large_program_is_as_sure_as_a_small_one(digits: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, strategy = load_cluster("xeon-64"), Strategy(batch=512, data=8, pipeline=2, microbatches=4)
    drawn = simulate(digits, cluster, strategy).figures.step_s
    monkeypatch.setattr(import_module("hpdlf.sim.simulate"), "MOST_TASKS_DRAWN", 0)
    first_order = simulate(digits, cluster, strategy).figures.step_s
    assert first_order.value == drawn.value
    widths = [math.log(each.high / each.low) / 2 / NINETY for each in (drawn, first_order)]
    assert widths[0] == pytest.approx(widths[1], rel=0.5)

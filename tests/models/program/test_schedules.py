from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpdlf.models.program.schedules import SCHEDULES


@pytest.mark.parametrize("name", SCHEDULES)
@given(stages=st.integers(1, 9), microbatches=st.integers(1, 12), data=st.data())
def test_every_microbatch_goes_forward_and_then_backward_once(
    name: str, stages: int, microbatches: int, data: st.DataObject
) -> None:
    stage = data.draw(st.integers(0, stages - 1))
    passes = list(SCHEDULES[name](stages, stage, microbatches))
    assert Counter(passes) == Counter((pass_, m) for pass_ in "FB" for m in range(microbatches))
    for m in range(microbatches):
        assert passes.index(("F", m)) < passes.index(("B", m))
    assert [m for pass_, m in passes if pass_ == "B"] == list(range(microbatches))  # gradients add up in one order


@given(stages=st.integers(1, 9), microbatches=st.integers(1, 12), data=st.data())
def test_microbatches_in_flight(stages: int, microbatches: int, data: st.DataObject) -> None:
    stage = data.draw(st.integers(0, stages - 1))

    def most_in_flight(name: str) -> int:
        flying = [0]
        for pass_, _ in SCHEDULES[name](stages, stage, microbatches):
            flying.append(flying[-1] + (1 if pass_ == "F" else -1))
        return max(flying)

    assert most_in_flight("gpipe") == microbatches
    assert most_in_flight("1f1b") == min(stages - stage, microbatches)

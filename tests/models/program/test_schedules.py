from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpdlf.models.program.schedules import SCHEDULES, Slot

SIZES = {"stages": st.integers(1, 9), "microbatches": st.integers(1, 12), "data": st.data()}


@pytest.mark.parametrize("name", SCHEDULES)
@given(**SIZES)
def test_every_microbatch_goes_forward_and_then_backward_once(
    name: str, stages: int, microbatches: int, data: st.DataObject
) -> None:
    place = data.draw(st.integers(0, stages - 1))
    slots = list(SCHEDULES[name](stages, place, microbatches, 1))
    kinds = sorted({s.kind for s in slots})
    assert kinds == (["B", "F", "W"] if name == "zero_bubble" else ["B", "F"])
    assert Counter(slots) == Counter(Slot(kind, m) for kind in kinds for m in range(microbatches))
    for m in range(microbatches):
        order = [s.kind for s in slots if s.microbatch == m]
        assert order == ["F", "B", "W"][: len(kinds)]
    for kind in set(kinds) - {"F"}:  # gradients add up in one order
        assert [s.microbatch for s in slots if s.kind == kind] == list(range(microbatches))


@given(pipeline=st.integers(2, 6), groups=st.integers(1, 4), interleave=st.integers(2, 4), data=st.data())
def test_interleaved_stages_see_every_microbatch_in_every_chunk(
    pipeline: int, groups: int, interleave: int, data: st.DataObject
) -> None:
    place, microbatches = data.draw(st.integers(0, pipeline - 1)), groups * pipeline
    slots = list(SCHEDULES["1f1b"](pipeline, place, microbatches, interleave))
    expected = [Slot(kind, m, c) for kind in ("F", "B") for m in range(microbatches) for c in range(interleave)]
    assert Counter(slots) == Counter(expected)
    for m in range(microbatches):
        forward = [s.chunk for s in slots if s.kind == "F" and s.microbatch == m]
        backward = [s.chunk for s in slots if s.kind == "B" and s.microbatch == m]
        assert forward == list(range(interleave))
        assert backward == list(reversed(range(interleave)))
    warm = next(i for i, s in enumerate(slots) if s.kind == "B") - 1
    assert warm == min(2 * (pipeline - place - 1) + (interleave - 1) * pipeline, interleave * microbatches - 1)


@given(**SIZES)
def test_microbatches_in_flight(stages: int, microbatches: int, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, stages - 1))

    def most_in_flight(name: str, ends: str = "B") -> int:
        flying = [0]
        for slot in SCHEDULES[name](stages, place, microbatches, 1):
            flying.append(flying[-1] + {"F": 1, ends: -1}.get(slot.kind, 0))
        return max(flying)

    assert most_in_flight("gpipe") == microbatches
    assert most_in_flight("1f1b") == min(stages - place, microbatches)
    assert most_in_flight("zero_bubble", "W") <= min(stages, microbatches)

"""Who waited for whom, in traces whose answer is known."""

from __future__ import annotations

from hpdlf.models.trace import Event, Trace
from hpdlf.sim.timeline import meetings, steps, transfers, working


def _event(role: str, rank: int, kind: str, name: str, start_s: float, end_s: float) -> Event:
    return Event(role, rank, 0, 0, f"{kind}.{name}", 0, kind, kind, "forward", start_s, end_s, 8)


def test_a_transfer_begins_when_both_have_entered() -> None:
    early = [_event("a", 0, "send", "x", 1.0, 2.0), _event("b", 2, "receive", "x", 0.0, 2.5)]
    late = [_event("a", 1, "send", "x", 1.0, 4.0), _event("b", 3, "receive", "x", 3.0, 4.0)]
    found = transfers(Trace(source="measured", events=(*early, *late)))
    assert [(t.send.rank, t.receive.rank, t.start_s, t.end_s) for t in found] == [(0, 2, 1.0, 2.5), (1, 3, 3.0, 4.0)]


def test_a_collective_begins_with_its_last_member() -> None:
    events = tuple(_event("a", rank, "all_reduce", "g", float(rank), 5.0 + rank) for rank in range(3))
    trace = Trace(source="measured", events=events)
    assert [(m.start_s, m.end_s) for m in meetings(trace)] == [(2.0, 7.0)]
    assert [working(trace)[e] for e in events] == [(2.0, 5.0), (2.0, 6.0), (2.0, 7.0)]


def test_a_step_that_was_cut_off_is_not_steady() -> None:
    starts = [(step, task, step + task / 4) for step in range(5) for task in range(4)]
    events = [_event("a", 0, "compute", f"{task}", s, s + 0.25)._replace(step=step) for step, task, s in starts]
    cut = Trace(source="measured", events=tuple(events[:-2]))
    assert [s.left_out for s in steps(cut)] == ["first of its attempt", "", "", "", "cut off"]

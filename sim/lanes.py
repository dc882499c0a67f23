"""Laying out a trace for drawing: which lanes and bars a picture of it has, whatever draws them.

Every rank shown has a main lane for computing and a thin one for each other stream on which something takes time. A bar
shows work, not waiting: a transfer stands once, at its sender, from the moment both sides had entered; white space in a
main lane is a device that waits. Colours are phases; what is compiled as one shows the colours of all its phases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..models.program import Kind, Phase
from ..models.trace import Event, Trace
from .timeline import Step, Working, steps, working

__all__ = ["PHASES", "Bar", "Chart", "Lane", "lay_out", "phases_of"]

PHASES = ("forward", "backward", "update", "communication", "host")
MOST_RANKS = 8
MOST_ROLES = 16
# A lane on which less than this share of the time shown is spent would be empty to the eye.
LEAST_SHARE = 0.004

_PHASE_OF_PART = {
    Phase.FORWARD: "forward",
    Phase.RECOMPUTE: "forward",
    Phase.BACKWARD: "backward",
    Phase.BACKWARD_INPUT: "backward",
    Phase.BACKWARD_WEIGHT: "backward",
    Phase.UPDATE: "update",
    Phase.HOST: "host",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """One task, seconds from the chart's zero. `label` is its microbatch; `other_step`: of a step that is not shown."""

    start_s: float
    end_s: float
    phases: tuple[str, ...]
    label: str
    task_id: str
    other_step: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Lane:
    """A stream of one rank; `main` for computing. `stands_for` ranks behave alike, of which this one is shown."""

    rank: int
    role: str
    stream: str
    main: bool
    stands_for: int
    bars: tuple[Bar, ...]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Lanes over `span_s` seconds; `what` says which steps they show and `note` which ranks were left out."""

    lanes: tuple[Lane, ...]
    span_s: float
    what: str
    note: str

    @property
    def phases(self) -> tuple[str, ...]:
        """Those that occur."""
        seen = {phase for lane in self.lanes for bar in lane.bars for phase in bar.phases}
        return tuple(p for p in PHASES if p in seen)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a reader has to be told about the bars, beside their colours."""
        bars = [bar for lane in self.lanes for bar in lane.bars]
        said = []
        if any(len(bar.phases) > 1 for bar in bars):
            said.append("colours above each other: compiled as one")
        if any(bar.other_step for bar in bars):
            said.append("pale: another step")
        return tuple(said)


def phases_of(event: Event) -> tuple[str, ...]:
    """The colours of an event: the names in :data:`PHASES` that it belongs to.

    >>> event = Event("stage0", 0, 0, 1, "forward.3+backward.3", 0, "compute", "compute", "backward", 0.0, 1.0, 0)
    >>> phases_of(event)
    ('forward', 'backward')
    """
    kind = Kind(event.kind)
    if kind.communicates:
        return ("communication",)
    if kind is not Kind.COMPUTE:
        return ("host",)
    known = {p.value: name for p, name in _PHASE_OF_PART.items()}
    parts = [known.get(part.partition(".")[0], "") for part in event.instruction.split("+")]
    return tuple(dict.fromkeys(p for p in parts if p)) or (known[event.phase],)


def lay_out(
    trace: Trace,
    *,
    chosen: Sequence[int] | None = None,
    attempt: int | None = None,
    most_ranks: int = MOST_RANKS,
    multiplicity: Mapping[int, int] | None = None,
) -> Chart:
    """The chart of some steps.

    chosen        numbers of the steps to show; None: the steady step whose length is the median
    attempt       of the run; None: the last that has such a step
    most_ranks    where the trace has more, one rank of each role is shown
    multiplicity  {rank: ranks that it stands for}, where alike ranks were simulated once
    """
    shown = _steps_shown(steps(trace), chosen, attempt)
    if not shown:
        return Chart(lanes=(), span_s=0.0, what="no steps", note="")
    numbers = {s.number for s in shown}
    attempt = shown[0].attempt
    zero_s, end_s = min(s.start_s for s in shown), max(s.end_s for s in shown)
    ranks, alike, note = _ranks_shown(trace, most_ranks, multiplicity or {})
    when = working(trace)
    rows: dict[tuple[int, str], list[Bar]] = {}
    roles: dict[int, str] = {}
    for event in trace.events:
        work = when[event]
        if event.rank not in ranks or event.attempt != attempt:
            continue
        roles[event.rank] = event.role
        if event.kind == Kind.RECEIVE or work.end_s <= zero_s or work.start_s >= end_s:
            continue
        rows.setdefault((event.rank, event.stream), []).append(_bar(event, work, zero_s, end_s, numbers))
    span_s = end_s - zero_s
    lanes = []
    if len({bar.label for bars in rows.values() for bar in bars if bar.label}) < 2:
        rows = {key: [replace(bar, label="") for bar in bars] for key, bars in rows.items()}
    for rank in ranks:
        streams = {stream for r, stream in rows if r == rank} | {"compute"}
        for stream in sorted(streams, key=lambda s: (s != "compute", s)):
            bars = tuple(sorted(rows.get((rank, stream), ()), key=lambda b: (b.start_s, b.end_s)))
            main = stream == "compute"
            if main or sum(b.end_s - b.start_s for b in bars) >= LEAST_SHARE * span_s:
                lanes.append(
                    Lane(
                        rank=rank,
                        role=roles.get(rank, ""),
                        stream=stream,
                        main=main,
                        stands_for=alike[rank],
                        bars=bars,
                    )
                )
    first, last = min(numbers), max(numbers)
    what = f"{'step' if first == last else 'steps'} {first if first == last else f'{first} to {last}'}"
    if any(event.attempt for event in trace.events):
        what += f" of attempt {attempt}"
    return Chart(lanes=tuple(lanes), span_s=span_s, what=what, note=note)


def _steps_shown(found: Sequence[Step], chosen: Sequence[int] | None, attempt: int | None) -> list[Step]:
    if chosen is None:
        steady = [s for s in found if not s.left_out and attempt in (None, s.attempt)] or [*found[-1:]]
        steady.sort(key=lambda s: (float(f"{s.seconds or 0.0:.6g}"), s.attempt, s.number))
        return steady[(len(steady) - 1) // 2 :][:1]
    asked = [s for s in found if s.number in set(chosen) and attempt in (None, s.attempt)]
    return [s for s in asked if s.attempt == max(a.attempt for a in asked)]


def _ranks_shown(trace: Trace, most: int, multiplicity: Mapping[int, int]) -> tuple[list[int], dict[int, int], str]:
    """The ranks to show, how many each stands for, and a sentence on those left out."""
    by_role: dict[str, list[int]] = {}
    for rank, role in sorted({(e.rank, e.role) for e in trace.events}):
        by_role.setdefault(role, []).append(rank)
    everyone = sorted(r for ranks in by_role.values() for r in ranks)
    alike = {r: multiplicity.get(r, 1) for r in everyone}
    total = sum(alike.values())
    if len(everyone) <= most:
        if total == len(everyone):
            return everyone, alike, ""
        are = "is" if len(everyone) == 1 else "are"
        return everyone, alike, f"{len(everyone)} of {total} ranks {are} shown; the others behave alike."
    chosen = [ranks[0] for ranks in by_role.values()]
    stands_for = {ranks[0]: sum(alike[r] for r in ranks) for ranks in by_role.values()}
    are = "is" if len(chosen) == 1 else "are"
    note = f"{len(chosen)} of {total} ranks {are} shown, the first of each role."
    if len(chosen) > MOST_ROLES:
        chosen = [chosen[i * (len(chosen) - 1) // (MOST_ROLES - 1)] for i in range(MOST_ROLES)]
        note = f"{len(chosen)} of {total} ranks are shown, of every so many roles the first."
    return sorted(chosen), stands_for, note


def _bar(event: Event, work: Working, zero_s: float, end_s: float, numbers: set[int]) -> Bar:
    return Bar(
        start_s=max(work.start_s, zero_s) - zero_s,
        end_s=min(work.end_s, end_s) - zero_s,
        phases=phases_of(event),
        label="" if event.microbatch is None else str(event.microbatch),
        task_id=event.task_id,
        other_step=event.step not in numbers,
    )

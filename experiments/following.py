"""Following a run while it trains: what its ranks trace corrects the predicted step, family by family.

A plan's step was predicted as so many seconds of each family of operators on the busiest rank, and a rest in which that
rank waits. Every task that a rank traces, and every step as a whole, measures those families, and
:class:`~hpdlf.models.cost.online.OnlineScales` corrects them between two steps.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..errors import DataError
from ..exec.run_folder import RunFolder
from ..models.cost import CostModel, OnlineScales, Timed, Workload
from ..models.plan import load_plan
from ..models.program import Kind
from ..models.trace import Event, Trace
from ..sim import Pricing
from ..sim.timeline import working
from .recorded import Recorded

__all__ = ["Follower", "parts_of"]

WAITING = "waiting"
# Of a trace that grew by more than this since the last look, only the end is read.
MOST_BYTES = 1_000_000


def parts_of(model: CostModel, workload: Workload, seconds: float) -> dict[str, float]:
    """`seconds` by family: as the model's shares are, without phase and precision; what calls cost is "launch".

    >>> work = Workload(subject="any", subject_kind="gpu", kind="segment", key="k",
    ...     components={"conv": 2.0, "conv.backward": 3.0, "kernels": 1.0, "dispatch": 1.0})
    >>> sorted(parts_of(CostModel.default(), work, 1.0))
    ['conv', 'launch']
    """
    found: dict[str, float] = {}
    for share in model.explain(workload):
        name = share.component.rpartition(":")[2].partition(".")[0]
        family = "launch" if name in ("kernels", "dispatch") else name
        found[family] = found.get(family, 0.0) + share.seconds
    total = sum(found.values())
    return {family: seconds * own / total for family, own in found.items()} if total else {}


class Follower:
    """The predicted step of the run in `folder`, which is corrected by what its ranks write down.

    step_s   the step's time in the plan

    Raises:
        HpdlfError: the folder holds no run, or its plan cannot be read.
    """

    def __init__(self, folder: Path, step_s: float) -> None:
        files = RunFolder(folder)
        run = Recorded(folder=files, plan=load_plan(files.plan), about=files.read(), approval=None, metrics=(),
                       measured=None, predicted=None, refined=None)  # fmt: skip
        self._folder, self._program = files, run.program
        model = _model()
        pricing = Pricing(
            program=run.program,
            graph=run.graph,
            cluster=run.cluster,
            model=model,
            precision=run.plan.strategy.precision,
            optimizer=run.plan.recipe.optimizer.name,
        )
        self._parts: dict[tuple[int, str], Mapping[str, float]] = {}
        for rank in range(self._program.mesh.size):
            for instruction in self._program.role_of(rank).instructions:
                workload = pricing.workload(rank, instruction)
                if workload is not None:
                    seconds = pricing.estimate(rank, instruction).seconds
                    self._parts[rank, instruction.id] = parts_of(model, workload, seconds)
        self._step_parts = self._busiest(step_s)
        families = {family for parts in self._parts.values() for family in parts} | self._step_parts.keys()
        self.scales = OnlineScales(sorted(families))
        self._positions: dict[Path, int] = {}
        self._events: dict[tuple[int, int], list[Event]] = {}
        self._first_steps: dict[int, int] = {}

    def take(self, step_s: float | None = None) -> None:
        """Take in what was traced since the last call, and a step that took `step_s` seconds."""
        tasks = [task for events in self._whole_steps() for task in self._timed(events)]
        if step_s is not None and step_s > 0.0:
            tasks.append(Timed(parts=self._step_parts, seconds=step_s))
        self.scales.update(tasks)

    @property
    def step_s(self) -> tuple[float, float, float]:
        """The corrected step in seconds, and the bounds that hold in nine cases of ten."""
        return self.scales.corrected(self._step_parts)

    def _busiest(self, step_s: float) -> dict[str, float]:
        """What the step of the rank that computes most consists of."""
        found: dict[str, float] = {}
        for role in self._program.roles:
            rank = self._program.ranks_of(role)[0]
            times = Counter(task.instruction for task in role.order)
            own: dict[str, float] = {}
            for instruction in role.instructions:
                if instruction.kind is Kind.COMPUTE:
                    for family, seconds in self._parts.get((rank, instruction.id), {}).items():
                        own[family] = own.get(family, 0.0) + times[instruction.id] * seconds
            if sum(own.values()) > sum(found.values()):
                found = own
        found[WAITING] = max(step_s - sum(found.values()), 0.01 * step_s)
        return found

    def _timed(self, events: list[Event]) -> Iterable[Timed]:
        when = working(Trace(source="measured", events=tuple(events)))
        for event in events:
            parts = self._parts.get((event.rank, event.instruction))
            if parts and event.kind != Kind.RECEIVE:
                yield Timed(parts=parts, seconds=when[event].seconds)

    def _whole_steps(self) -> Iterable[list[Event]]:
        """The events of steps that all ranks have left behind, but for an attempt's first, which compiles."""
        for path in self._folder.traces():
            for event in self._new(path):
                self._events.setdefault((event.attempt, event.step), []).append(event)
        latest: dict[tuple[int, int], int] = {}
        for (attempt, step), events in self._events.items():
            for rank in {e.rank for e in events}:
                latest[attempt, rank] = max(latest.get((attempt, rank), step), step)
        for attempt, step in sorted(self._events):
            reached = [s for (a, _), s in latest.items() if a == attempt]
            if len(reached) == self._program.mesh.size and min(reached) > step:
                events = self._events.pop((attempt, step))
                if self._first_steps.setdefault(attempt, step) != step:
                    yield events

    def _new(self, path: Path) -> Iterable[Event]:
        """Events since the last look; a line that is not whole yet waits for the next."""
        position = self._positions.get(path, 0)
        with path.open("rb") as file:
            size = file.seek(0, 2)
            skipped = size - position > MOST_BYTES
            file.seek(size - MOST_BYTES if skipped else position)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._positions[path] = size - len(content) + len(whole)
        lines = whole.split(b"\n")[1:-1] if skipped else whole.split(b"\n")[:-1]
        for line in lines:
            try:
                values = json.loads(line)
            except ValueError:
                continue
            if isinstance(values, list):
                yield Event(*values)


def _model() -> CostModel:
    """The refined model; what ships, where the database cannot be read just now."""
    try:
        return CostModel.load()
    except DataError:
        return CostModel.default()

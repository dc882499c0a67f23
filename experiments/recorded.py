"""What a run left behind: reading the folder that ``hpdlf train`` wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..exec.run_folder import RunFolder
from ..hwprofiles import Cluster, cluster_from_toml
from ..models.onnxpp import Graph, annotation, load_onnxpp
from ..models.plan import Partition, Plan, load_plan
from ..models.program import Program
from ..models.program.lower import lower
from ..models.trace import Event, Trace, read_trace

__all__ = ["Recorded", "read_run"]

REFINED = "refined.trace.jsonl"


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """A run's files.

    about       run.json
    approval    approval.json; None where there is none
    metrics     the lines of metrics.jsonl: a step's loss and speed, or an evaluation
    measured    what the ranks did under the plan that lies in the folder; None if they wrote nothing. Its `about` has
                under "ranks" what each rank's file says of itself
    predicted   the simulated trace of the plan; None if it was not kept
    refined     the simulated trace after ``hpdlf refine``; None before. Its header has "step_s"
    """

    folder: RunFolder
    plan: Plan
    about: Mapping[str, Any]
    approval: Mapping[str, Any] | None
    metrics: tuple[Mapping[str, Any], ...]
    measured: Trace | None
    predicted: Trace | None
    refined: Trace | None

    @property
    def refined_path(self) -> Path:
        """Where the refined prediction lies."""
        return self.folder.path / REFINED

    @property
    def name(self) -> str:
        """Tells this run from others in the database of observations."""
        return f"{self.plan.configuration}@{self.about.get('started', self.folder.path.name)}"

    def about_rank(self, rank: int) -> Mapping[str, Any]:
        """Machine, versions and conditions of a rank, by its trace; the whole run's where that does not say."""
        own = self.measured.about.get("ranks", {}).get(rank, {}) if self.measured is not None else {}
        return {**self.about, **own}

    @cached_property
    def graph(self) -> Graph:
        """The model as the run used it."""
        return self._model.graph

    @cached_property
    def _model(self) -> Any:
        beside = Path(str(self.about.get("model", "")))
        return load_onnxpp(self.folder.model if self.folder.model.is_file() else beside)

    @cached_property
    def program(self) -> Program:
        """The program that the ranks interpreted."""
        placed = annotation(self._model, self.plan.configuration)
        cut = Partition(
            stages={name: p.stage for name, p in placed.items()},
            segments={name: p.segment for name, p in placed.items()},
        )
        recipe = self.plan.recipe
        return lower(
            self.graph,
            cut,
            self.plan.strategy,
            optimizer=recipe.optimizer.name,
            checkpoint_every=recipe.checkpoint_every,
        )

    @cached_property
    def cluster(self) -> Cluster:
        """The cluster that the plan was made for."""
        return cluster_from_toml(self.plan.cluster_toml, origin=f"{self.folder.plan}: cluster_toml")


def read_run(run_folder: str | Path) -> Recorded:
    """Read a run, whether or not it has ended; lines that a killed rank left unfinished are passed over.

    Raises:
        RunError: the folder holds no run.
        PlanError: its plan cannot be read.
        DataError: a trace or the metrics are damaged.
    """
    folder = RunFolder(Path(run_folder))
    about = folder.read()
    return Recorded(
        folder=folder,
        plan=load_plan(folder.plan),
        about=about,
        approval=_approval(folder.approval),
        metrics=_metrics(folder.metrics),
        measured=_measured(folder, about.get("plan_sha256")),
        predicted=read_trace(folder.predicted) if folder.predicted.is_file() else None,
        refined=read_trace(folder.path / REFINED) if (folder.path / REFINED).is_file() else None,
    )


def _approval(path: Path) -> Mapping[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: the approval cannot be read: {error}.") from None
    return found if isinstance(found, dict) else None


def _metrics(path: Path) -> tuple[Mapping[str, Any], ...]:
    if not path.is_file():
        return ()
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(json.loads(line))
        except ValueError:
            if number == len(lines) or not line.endswith("\n"):
                continue  # a run that was killed, or is writing just now
            raise DataError(f"{path}, line {number}: is no JSON. Remove the line, or train again.") from None
    return tuple(m for m in found if isinstance(m, dict))


def _measured(folder: RunFolder, plan_sha256: object) -> Trace | None:
    """All ranks and attempts under the plan in the folder: a run may have been resumed under another one."""
    events: list[Event] = []
    about: dict[str, Any] = {}
    ranks: dict[int, Mapping[str, Any]] = {}
    for path in folder.traces():
        if path.stat().st_size == 0:
            continue
        trace = read_trace(path, cut_short=True)
        if plan_sha256 is None or trace.about.get("plan_sha256", plan_sha256) == plan_sha256:
            events += trace.events
            about = {**trace.about, **about}
            ranks[int(trace.about.get("rank", 0))] = trace.about
    if not events:
        return None
    events.sort(key=lambda e: (e.attempt, e.start_s, e.rank, e.stream, e.end_s))
    about.pop("rank", None)
    about.pop("attempt", None)
    return Trace(source="measured", events=tuple(events), about={**about, "ranks": ranks})

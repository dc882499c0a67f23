"""Micro-benchmarks of this machine: what `hpdlf profile measure` runs to write the profile ``local``.

One device is one core, so everything runs with one thread, bound to one core, in processes of its own: chains of
operators as the executor compiles them (on two cores at once, where there are two), memory bandwidth with every core
streaming, and messages and all-reduces between two MPI ranks. Values are medians with the 10th and 90th percentile.

>>> [step.split(":")[0] for step in STEPS]
['operators', 'memory', 'communication', 'energy']
"""

from __future__ import annotations

import datetime
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import RunError
from ..hwprofiles import Cluster, user_folder, write_cluster
from .affinity import usable_cores
from .energy_meters import find_meters
from .microbenchmarks_chains import Case
from .microbenchmarks_processes import (
    json_lines,
    json_lines_together,
    mpi_command,
    one_core_environment,
    run_together,
)
from .microbenchmarks_profile import Findings, local_cluster

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["STEPS", "CommunicationObservation", "Measurement", "OperatorObservation", "main", "measure_machine"]

STEPS = (
    "operators: one thread, one core each",
    "memory: every core streams at once",
    "communication: two MPI ranks",
    "energy: counters at rest and under load",
)
# Shares of the time given; starting processes and compiling takes the rest.
OPERATORS_SHARE, MEMORY_SHARE, COMMUNICATION_SHARE = 0.78, 0.03, 0.08
SHORTEST_S = 5.0
OPERATOR_STEPS = 100
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class OperatorObservation:
    """A chain of operators timed on one core. `seconds` is the median of a compiled call, one dispatch included.

    `outliers` took over twice the median.
    """

    case: Case
    seconds: float
    low_s: float
    high_s: float
    fastest_s: float
    repeats: int
    outliers: int

    def row(self) -> dict[str, Any]:
        """As plain values."""
        case = self.case.as_dict()
        return case | {name: value for name, value in vars(self).items() if name != "case"}


@dataclass(frozen=True, kw_only=True)
class CommunicationObservation:
    """A message (one way) or an all-reduce of float32 between `ranks` processes of this machine."""

    kind: str
    ranks: int
    bytes: int
    seconds: float
    low_s: float
    high_s: float
    fastest_s: float
    repeats: int
    outliers: int


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What was measured: the profile, observations for the cost model, and in words what was left out or looked odd."""

    cluster: Cluster
    operators: tuple[OperatorObservation, ...]
    communication: tuple[CommunicationObservation, ...]
    skipped: tuple[str, ...]
    notes: tuple[str, ...]
    seconds: float
    path: Path | None

    def rows(self) -> list[dict[str, Any]]:
        """The timed chains as dicts, for a table or a database."""
        return [one.row() for one in self.operators]

    def to_frame(self) -> pd.DataFrame:
        """One row a chain, as :meth:`rows`."""
        import pandas as pd

        return pd.DataFrame(self.rows())


def measure_machine(
    *,
    budget_s: float = 150.0,
    name: str = "local",
    folder: str | os.PathLike[str] | None = None,
    mpi: bool = True,
    write: bool = True,
    progress: Progress | None = None,
) -> Measurement:
    """Measure this machine in about `budget_s` seconds and write the profile ``clusters/NAME.toml`` into `folder`.

    `folder` is the user's profile folder unless given. `progress(text, done, total)` is called before each step. What
    cannot be measured (no MPI, a single core, no energy counter) is named in `skipped` with its reason, and absent or
    marked as modelled in the profile. Raises RunError if the operators cannot be timed at all, ProfileError if the
    profile cannot be written.
    """
    if not budget_s >= SHORTEST_S:
        raise RunError(
            f"measuring takes at least {SHORTEST_S:g} seconds, not {budget_s:g}; about 150 give a good profile"
        )
    start = time.perf_counter()
    cores = usable_cores()
    total = OPERATOR_STEPS + len(STEPS) - 1
    say = progress or (lambda text, done, total: None)
    say("starting", 0, total)
    found = Findings(cores=len(cores), date=datetime.date.today().isoformat())
    skipped: list[str] = []
    operators = _operators(cores, OPERATORS_SHARE * budget_s, found, skipped, lambda text, done: say(text, done, total))
    done = OPERATOR_STEPS
    say(STEPS[1], done, total)
    _memory(cores, max(0.3, MEMORY_SHARE * budget_s / 2), found)
    say(STEPS[2], done + 1, total)
    communication = _communication(cores, COMMUNICATION_SHARE * budget_s, found, skipped) if mpi else []
    if not mpi:
        skipped.append("communication: not asked for")
    say(STEPS[3], done + 2, total)
    _energy(cores, found, skipped)
    cluster = local_cluster(name, found, _products(operators), [asdict(one) for one in communication])
    path = None
    if write:
        path = write_cluster(cluster, Path(folder or user_folder()) / "clusters" / f"{name}.toml")
    say("done", total, total)
    return Measurement(
        cluster=cluster,
        operators=tuple(operators),
        communication=tuple(communication),
        skipped=tuple(skipped),
        notes=(*_drift(found), *_notes(operators, communication)),
        seconds=time.perf_counter() - start,
        path=path,
    )


def _products(operators: list[OperatorObservation]) -> list[dict[str, Any]]:
    """Plain matrix products, from which a profile's peaks come."""
    found = []
    for one in operators:
        if one.case.kind == "product":
            m, n, k = (int(one.case.sizes[name]) for name in "mnk")
            found.append(one.row() | {"family": "matmul", "shape": {"m": m, "n": n, "k": k}, "flops": 2.0 * m * n * k})
    return found


def _module(name: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", f"{__package__}.{name}", *map(str, arguments)]


def _operators(
    cores: list[int], budget_s: float, found: Findings, skipped: list[str], say: Callable[[str, int], None]
) -> list[OperatorObservation]:
    """Chains, half of them on each of two cores."""
    chosen = cores[-2:]
    commands = [
        _module(
            "microbenchmarks_compute", "operators", "--core", core, "--budget-s", budget_s, "--part", i, len(chosen)
        )
        for i, core in enumerate(chosen)
    ]
    observations = []
    shown = 0
    for message in json_lines_together(
        commands, env=one_core_environment(), timeout_s=3 * budget_s + 120, what="timing operators"
    ):
        kind = message.pop("kind")
        if kind == "progress":
            shown = max(shown, int(OPERATOR_STEPS * message["share"]))
            say(message["text"], min(shown, OPERATOR_STEPS - 1))
        elif kind == "case":
            observations.append(OperatorObservation(**message | {"case": Case(**message["case"])}))
        elif kind == "dispatch":
            found.dispatch = message
        elif kind == "reference":
            found.references.append(message)
        elif kind == "skipped":
            skipped.append(f"{message['what']}: {message['reason']}")
    if not observations or found.dispatch is None:
        raise RunError("timing operators gave no result; `hpdlf doctor` shows whether JAX works here")
    return sorted(observations, key=lambda one: one.case.text)


def _memory(cores: list[int], seconds: float, found: Findings) -> None:
    """Bandwidth of one core alone, and of each while all stream."""

    def stream(chosen: list[int]) -> list[dict[str, Any]]:
        # Starting Python and NumPy takes under a second; more on a machine with many cores.
        begin_at = time.time() + 1.0 + 0.02 * len(chosen)
        commands = [
            _module("microbenchmarks_compute", "triad", "--core", c, "--budget-s", seconds, "--begin-at", begin_at)
            for c in chosen
        ]
        outputs = run_together(
            commands, env=one_core_environment(), timeout_s=seconds + 120, what="measuring memory bandwidth"
        )
        return [json.loads(line) for line in outputs]

    found.triad_alone = stream(cores[-1:])[0]
    found.triad_together = stream(cores) if len(cores) > 1 else [found.triad_alone]


def _communication(
    cores: list[int], budget_s: float, found: Findings, skipped: list[str]
) -> list[CommunicationObservation]:
    if len(cores) < 2:
        skipped.append("communication: there is a single core, so nothing to communicate with")
        return []
    prefix, reason = mpi_command(2)
    if prefix is None:
        skipped.append(f"communication: {reason}")
        return []
    command = prefix + _module("microbenchmarks_mpi", "--cores", *cores[:2], "--budget-s", budget_s)
    observations = []
    try:
        env = one_core_environment()
        for message in json_lines(command, env=env, timeout_s=3 * budget_s + 60, what="measuring MPI"):
            kind = message.pop("kind")
            if kind == "overlap":
                found.overlap = message
            else:
                observations.append(CommunicationObservation(kind=kind, ranks=2, **message))
    except RunError as error:
        skipped.append(f"communication: {error}")
        return []
    if found.overlap and found.overlap.get("share") is None:
        skipped.append(f"overlap: {found.overlap['reason']}")
    return observations


def _energy(cores: list[int], found: Findings, skipped: list[str]) -> None:
    """Watts of the CPU packages at rest and with every core busy, where there is a counter."""
    meters = find_meters()
    skipped.extend(f"energy: {reason}" for reason in meters.missing)
    found.no_energy = "; ".join(meters.missing)
    packages = [meter for meter in meters.found if meter.scope == "cpu"]
    if not packages:
        return

    def watts(seconds: float) -> float:
        start, before_j = time.perf_counter(), sum(meter.read_j() for meter in packages)
        time.sleep(seconds)
        return (sum(meter.read_j() for meter in packages) - before_j) / (time.perf_counter() - start)

    found.idle_w = watts(2.0)
    busy = [_module("microbenchmarks_compute", "busy", "--core", core, "--budget-s", 5.0) for core in cores]
    loaded: list[float] = []

    def meanwhile() -> None:
        time.sleep(3.0)
        loaded.append(watts(2.0))

    run_together(busy, env=one_core_environment(), timeout_s=120, what="measuring power", meanwhile=meanwhile)
    found.busy_w = loaded[0]


def _notes(operators: list[OperatorObservation], communication: list[CommunicationObservation]) -> list[str]:
    """What looked odd, in words: over a tenth of the repeats far off, or a spread of more than half of the median."""
    notes = []
    named: list[tuple[str, OperatorObservation | CommunicationObservation]] = []
    named += [(o.case.text, o) for o in operators]
    named += [(f"{c.kind} of {c.bytes} bytes", c) for c in communication]
    for what, one in named:
        spread = (one.high_s - one.low_s) / one.seconds
        if one.outliers > 0.1 * one.repeats:
            far = f"{one.outliers} of {one.repeats} repeats took over twice the median"
            notes.append(f"{what}: {far}; is there other work on this machine?")
        elif spread > 0.5:
            notes.append(f"{what}: the middle four fifths of the repeats spread over {spread:.0%} of the median")
    return notes


def _drift(found: Findings) -> list[str]:
    """Whether the same product took longer at some times than at others."""
    times = [one["seconds"] for one in found.references]
    if not times or max(times) < 1.1 * min(times):
        return []
    return [
        f"the same matrix product took between {min(times) * 1e3:.3g} and {max(times) * 1e3:.3g} ms in the course of the "
        "measurement; is there other work on this machine, or does its clock change?"
    ]


def main(arguments: list[str] | None = None) -> None:
    """Measure this machine from the command line: ``python -m hpdlf.exec.microbenchmarks``."""
    import argparse

    parser = argparse.ArgumentParser(description="measure this machine and write its profile")
    parser.add_argument("--budget-s", type=float, default=150.0)
    parser.add_argument("--folder", default=None)
    parser.add_argument("--json", action="store_true", help="print the observations as JSON")
    options = parser.parse_args(arguments)

    def progress(text: str, done: int, total: int) -> None:
        sys.stderr.write(f"{done}/{total} {text}\n")

    measurement = measure_machine(budget_s=options.budget_s, folder=options.folder, progress=progress)
    if options.json:
        communication = [asdict(one) for one in measurement.communication]
        sys.stdout.write(json.dumps({"operators": measurement.rows(), "communication": communication}) + "\n")
        return
    lines = [f"{measurement.path} after {measurement.seconds:.0f} s"]
    lines += [f"skipped: {text}" for text in measurement.skipped] + [f"note: {text}" for text in measurement.notes]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

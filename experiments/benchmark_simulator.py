"""How fast the simulator simulates, beside a plain replay of the same training step in SimPy.

``python -m hpdlf.experiments.benchmark_simulator [--json]`` runs both in one go, in turns, and takes the fastest of each: P pipeline
stages of L layers on D replicas, M microbatches in 1F1B order. A layer takes 1 ms forward and 2 ms backward, 16 MiB pass between
stages, and after its last backward pass the 256 MiB of gradients of each layer go round a ring of the replicas, one layer after the
other. In the replay every rank is a process, and every layer and message an event. Ours is made as a program (``generate``), then
played with one rank for all that behave alike (``folded``), and with a speed of its own for every rank (``unfolded``). Both sides
must end at the same time.

Then the cost of large plans is measured, each in a process of its own (:mod:`.benchmark_scale`).
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import simpy

from ..models.program import (
    Buffer,
    Content,
    Group,
    Instruction,
    Kind,
    Mesh,
    Pass,
    Peer,
    Phase,
    Program,
    Role,
    Scope,
)
from ..models.program.schedules import one_f_one_b
from ..sim.engine import play
from ..sim.folding import fold, unfolded
from .benchmark_scale import CASES, Scale, measure_apart

__all__ = ["WORKLOADS", "Row", "Workload", "benchmark", "main", "program_of", "replayed_end_s"]

FORWARD_S, BACKWARD_S = 1e-3, 2e-3
ACTIVATION_BYTES, GRADIENT_BYTES = 16 * 2**20, 256 * 2**20
LATENCY_S, BANDWIDTH_BYTES_PER_S = 500e-9, 50e9


class Workload(NamedTuple):
    """Stages, replicas, layers in each stage, microbatches."""

    stages: int
    replicas: int
    layers: int
    microbatches: int

    @property
    def tasks(self) -> int:
        """Layers computed and messages sent in one step."""
        ranks = self.stages * self.replicas
        computed = 2 * self.layers * self.microbatches * ranks
        passed = 2 * (self.stages - 1) * self.microbatches * self.replicas
        return computed + passed + 2 * (self.replicas - 1) * self.layers * ranks


WORKLOADS = (Workload(8, 8, 12, 64), Workload(16, 64, 6, 16))
T = TypeVar("T")
LEAST_SPEEDUP = (10.0, 100.0)


@dataclass(frozen=True, kw_only=True)
class Row:
    """Seconds that each side takes, and when the simulated step ends. `unfolded_s` is with speeds that differ, `end_unfolded_s`
    without."""

    name: str
    tasks: int
    replay_s: float
    generate_s: float
    folded_s: float
    unfolded_s: float
    end_replay_s: float
    end_folded_s: float
    end_unfolded_s: float

    @property
    def speedup(self) -> float:
        """Of the program and its folded run over the replay."""
        return self.replay_s / (self.generate_s + self.folded_s)


def _message_s(nbytes: float) -> float:
    return LATENCY_S + nbytes / BANDWIDTH_BYTES_PER_S


# --- the plain replay ------------------------------------------------------------------------------------------------------------


class _Mail:
    """Messages by key: on their way, or waited for."""

    def __init__(self, env: simpy.Environment) -> None:
        self.env = env
        self.sent: dict[tuple[Any, ...], simpy.Event] = {}
        self.readers: dict[tuple[Any, ...], simpy.Event] = {}

    def send(self, key: tuple[Any, ...], seconds: float) -> None:
        message = self.env.timeout(seconds)
        reader = self.readers.pop(key, None)
        if reader is None:
            self.sent[key] = message
        else:
            assert message.callbacks is not None
            message.callbacks.append(lambda _: reader.succeed())

    def receive(self, key: tuple[Any, ...]) -> simpy.Event:
        message = self.sent.pop(key, None)
        if message is None:
            message = self.readers[key] = self.env.event()
        return message


def replayed_end_s(workload: Workload, speed: Sequence[float] | None = None) -> float:
    """When the step ends if every rank is a process. `speed`: of each rank, stage by stage, a factor on its computing times."""
    stages, replicas, layers, microbatches = workload
    env = simpy.Environment()
    mail = _Mail(env)
    finished = {(s, r, k): env.event() for s in range(stages) for r in range(replicas) for k in range(layers)}
    passed_s, hop_s = _message_s(ACTIVATION_BYTES), _message_s(GRADIENT_BYTES // replicas)

    def compute(stage: int, replica: int) -> Generator[simpy.Event, Any, None]:
        factor = speed[stage * replicas + replica] if speed is not None else 1.0
        order = list(one_f_one_b(stages, stage, microbatches))
        for place, (kind, microbatch, _) in enumerate(order):
            onward = 1 if kind == "F" else -1
            seconds = factor * (FORWARD_S if kind == "F" else BACKWARD_S)
            if 0 <= stage - onward < stages:
                yield mail.receive((stage, replica, kind, microbatch))
            for layer in range(layers)[::onward]:
                yield env.timeout(seconds)
                if place == len(order) - 1:
                    finished[stage, replica, layer].succeed()
            if 0 <= stage + onward < stages:
                mail.send((stage + onward, replica, kind, microbatch), passed_s)

    def reduce(stage: int, replica: int) -> Generator[simpy.Event, Any, None]:
        for layer in reversed(range(layers)):
            yield finished[stage, replica, layer]
            for hop in range(2 * (replicas - 1)):
                mail.send((stage, (replica + 1) % replicas, layer, hop, "ring"), hop_s)
                yield mail.receive((stage, replica, layer, hop, "ring"))

    for stage in range(stages):
        for replica in range(replicas):
            env.process(compute(stage, replica))
            env.process(reduce(stage, replica))
    env.run()
    return float(env.now)


# --- the same step as a program --------------------------------------------------------------------------------------------------


def program_of(workload: Workload) -> Program:
    """The step as a program of one role per stage."""
    stages, replicas, _, microbatches = workload
    work: dict[tuple[bool, bool], Role] = {}  # stages between the first and the last do the same, only in another order
    return Program(
        name="benchmark",
        mesh=Mesh(axes={"pipeline": stages, "data": replicas}),
        microbatches=microbatches,
        microbatch_samples=1,
        loss_weight=1.0,
        roles=tuple([_role(workload, stage, work) for stage in range(stages)]),
        segments={},
    )


def _role(workload: Workload, stage: int, work: dict[tuple[bool, bool], Role]) -> Role:
    ends = (stage == 0, stage == workload.stages - 1)
    if ends not in work:
        work[ends] = _work(workload.layers, *ends)
    order = list(one_f_one_b(workload.stages, stage, workload.microbatches))
    schedule = [Pass("forward" if kind == "F" else "backward", m) for kind, m, _ in order]
    schedule[-1] = Pass("last backward", order[-1].microbatch)
    return replace(work[ends], name=f"stage{stage}", coordinates={"pipeline": stage}, schedule=tuple(schedule))


def _work(layers: int, first: bool, last: bool) -> Role:
    """What a stage does, without a schedule."""
    instructions: dict[str, Instruction] = {}

    def does(id: str, kind: Kind, stream: str, phase: Phase, **more: Any) -> str:
        instructions[id] = Instruction(id=id, kind=kind, stream=stream, phase=phase, **more)
        return id

    def message(kind: Kind, name: str, offset: int, phase: Phase, **more: Any) -> str:
        side = "next" if offset > 0 else "previous"
        return does(
            f"{kind}.{name}", kind, f"{kind}.{side}", phase, peer=Peer("pipeline", offset), message=name, **more
        )

    names = [str(layer) for layer in range(layers)]
    forward = [] if first else [message(Kind.RECEIVE, "act", -1, Phase.FORWARD, writes=("arrived",))]
    for k, name in enumerate(names):
        arrived = ("arrived",) if k == 0 and not first else ()
        out = ("out",) if k == layers - 1 and not last else ()
        forward.append(
            does(
                f"forward.{name}",
                Kind.COMPUTE,
                "compute",
                Phase.FORWARD,
                reads=arrived,
                writes=(f"res.{name}", *out),
                frees=arrived,
            )
        )
    if not last:
        forward.append(message(Kind.SEND, "act", 1, Phase.FORWARD, reads=("out",), frees=("out",)))
    backward = [] if last else [message(Kind.RECEIVE, "cot", 1, Phase.BACKWARD, writes=("gradient",))]
    final = list(backward)
    for k, name in reversed(list(enumerate(names))):
        arrived = ("gradient",) if k == layers - 1 and not last else ()
        out = ("handed",) if k == 0 and not first else ()
        task = does(
            f"backward.{name}",
            Kind.COMPUTE,
            "compute",
            Phase.BACKWARD,
            reads=(f"res.{name}", *arrived),
            writes=out,
            accumulates=(f"grad.{name}",),
            frees=(f"res.{name}", *arrived),
        )
        backward.append(task)
        grad = (f"grad.{name}",)
        reduce = does(
            f"reduce.{name}",
            Kind.ALL_REDUCE,
            "reduce",
            Phase.BACKWARD,
            group=Group(("data",)),
            message=grad[0],
            reads=grad,
            writes=grad,
            frees=grad,
            once=True,
        )
        final += [task, reduce]
    if not first:
        send = message(Kind.SEND, "cot", -1, Phase.BACKWARD, reads=("handed",), frees=("handed",))
        backward.append(send)
        final.append(send)
    messages = {"arrived": not first, "handed": not first, "out": not last, "gradient": not last}
    buffers = [(f"grad.{name}", Content.GRADIENTS, Scope.STEP, GRADIENT_BYTES) for name in names]
    buffers += [(f"res.{name}", Content.RESIDUALS, Scope.MICROBATCH, ACTIVATION_BYTES) for name in names]
    buffers += [(b, Content.ACTIVATIONS, Scope.MICROBATCH, ACTIVATION_BYTES) for b, used in messages.items() if used]
    return Role(
        name="",
        coordinates={},
        buffers=tuple([Buffer(name=n, content=c, scope=s, nbytes=b) for n, c, s, b in buffers]),
        instructions=tuple(instructions.values()),
        passes={"forward": tuple(forward), "backward": tuple(backward), "last backward": tuple(final)},
        schedule=(),
    )


def prices_of(workload: Workload, role: Role, factor: float = 1.0) -> dict[str, float]:
    """Seconds of every instruction of `role` on a rank whose computing takes `factor` times as long."""
    replicas = workload.replicas
    ring_s = 2 * (replicas - 1) * _message_s(GRADIENT_BYTES // replicas)
    kinds = {Kind.SEND: _message_s(ACTIVATION_BYTES), Kind.RECEIVE: 0.0, Kind.ALL_REDUCE: ring_s}
    compute = {Phase.FORWARD: factor * FORWARD_S, Phase.BACKWARD: factor * BACKWARD_S}
    return {i.id: compute[i.phase] if i.kind is Kind.COMPUTE else kinds[i.kind] for i in role.instructions}


def folded_end_s(workload: Workload, program: Program) -> float:
    """When the step ends, simulated with one rank for all that behave alike."""
    folding = fold(program)
    seconds = {rank: prices_of(workload, program.role_of(rank)) for rank in folding.representatives}
    return play(program, seconds, folding=folding, steps=1).end_s


def unfolded_end_s(workload: Workload, program: Program, speed: Sequence[float] | None = None) -> float:
    """When the step ends, simulated rank by rank."""
    folding = unfolded(program.mesh)
    factors = speed if speed is not None else [1.0] * program.mesh.size
    seconds = {rank: prices_of(workload, program.role_of(rank), f) for rank, f in enumerate(factors)}
    return play(program, seconds, folding=folding, steps=1).end_s


# --- measuring -------------------------------------------------------------------------------------------------------------------


def _timed(do: Callable[[], T]) -> tuple[float, T]:
    gc.collect()
    start = time.perf_counter()
    result = do()
    return time.perf_counter() - start, result


def benchmark(workload: Workload, *, repeats: int = 3) -> Row:
    """Both sides in turns, the fastest of each."""
    ranks = workload.stages * workload.replicas
    speed = np.random.Generator(np.random.Philox(0)).lognormal(0.0, 0.05, ranks).tolist()
    best = dict.fromkeys(("replay", "generate", "folded", "unfolded"), float("inf"))
    ends: dict[str, float] = {}
    for _ in range(repeats):
        taken_s, ends["replay"] = _timed(partial(replayed_end_s, workload))
        best["replay"] = min(best["replay"], taken_s)
        taken_s, program = _timed(partial(program_of, workload))
        best["generate"] = min(best["generate"], taken_s)
        taken_s, ends["folded"] = _timed(partial(folded_end_s, workload, program))
        best["folded"] = min(best["folded"], taken_s)
        fresh = program_of(workload)
        taken_s, _ = _timed(partial(unfolded_end_s, workload, fresh, speed))
        best["unfolded"] = min(best["unfolded"], taken_s)
    return Row(
        name="P{} D{} L{} M{}".format(*workload),
        tasks=workload.tasks,
        replay_s=best["replay"],
        generate_s=best["generate"],
        folded_s=best["folded"],
        unfolded_s=best["unfolded"],
        end_replay_s=ends["replay"],
        end_folded_s=ends["folded"],
        end_unfolded_s=unfolded_end_s(workload, program_of(workload)),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m hpdlf.experiments.benchmark_simulator", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON and nothing else")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side (default: 3)")
    parser.add_argument("--no-scale", action="store_true", help="leave out the large plans")
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error(f"--repeats {options.repeats}: give at least 1")
    rows = [benchmark(workload, repeats=options.repeats) for workload in WORKLOADS]
    scales = (
        []
        if options.no_scale
        else [measure_apart(case, repeats=options.repeats if case.most_s else 1) for case in CASES]
    )
    if options.json:
        figures = {"workloads": [asdict(row) for row in rows], "scale": [asdict(scale) for scale in scales]}
        print(json.dumps(figures, indent=1))
    else:
        _show(rows)
        _show_scale(scales)
    return 0


def _show(rows: Sequence[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="One training step, seconds to simulate")
    for column in ("workload", "tasks", "replay", "program", "folded", "times faster", "wanted", "unfolded", "ends"):
        table.add_column(column, justify="left" if column == "workload" else "right")
    for row, least in zip(rows, LEAST_SPEEDUP, strict=True):
        apart = max(abs(row.end_folded_s - row.end_replay_s), abs(row.end_unfolded_s - row.end_replay_s))
        table.add_row(
            row.name,
            f"{row.tasks:,}",
            f"{row.replay_s:.3f}",
            f"{row.generate_s:.4f}",
            f"{row.folded_s:.4f}",
            f"{row.speedup:.0f}",
            f"≥ {least:.0f}",
            f"{row.unfolded_s:.3f}",
            f"{row.end_folded_s:.6f} s, {apart:.0e} apart",
        )
    Console().print(table)


def _show_scale(scales: Sequence[Scale]) -> None:
    from rich.console import Console
    from rich.table import Table

    if not scales:
        return
    most_s = {case.name: case.most_s for case in CASES}
    table = Table(title="Large plans, seconds to simulate")
    for column in ("plan", "devices", "microbatches", "classes", "tasks", "prepared", "simulated", "wanted", "memory"):
        table.add_column(column, justify="left" if column == "plan" else "right")
    for scale in scales:
        wanted_s = most_s[scale.name]
        table.add_row(
            scale.name,
            f"{scale.devices:,}",
            f"{scale.microbatches:,}",
            f"{scale.classes:,}",
            f"{scale.tasks:,}",
            f"{scale.prepare_s:.2f}",
            f"{scale.wall_s:.3f}",
            "" if wanted_s is None else f"< {wanted_s:g}",
            f"{scale.peak_bytes / 1e6:.0f} MB",
        )
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())

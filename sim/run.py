"""Whole runs: from start-up over steps, evaluations and checkpoints to the end, as one timeline in virtual time.

A run is made of simulated pieces: a steady step, a step of the forward pass alone for evaluations, and what storage and the hosts of
the input pipeline take. A SimPy process trains: it works through the steps between one event and the next, stands still while it
evaluates, and waits for a checkpoint to be written, or hands it to a writer and goes on. Samples come from a store of prefetched
steps that the hosts fill meanwhile: where they are slower than the devices, steps wait for them.

A step is a steady one throughout: nothing is said of the first steps' compilation beyond what ``startup_s`` says, nor of jitter.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import replace
from math import ceil, inf
from typing import Any

import simpy

from ..errors import PlanError
from ..hwprofiles import Cluster
from ..models.cost import CostModel
from ..models.onnxpp import Graph
from ..models.plan import Strategy
from ..models.plan.recipe import state_copies
from .energy import NodePower, idle_node, nodes_in_use
from .result import Interval, Simulation
from .run_plan import CheckpointPlan, EvaluationPlan, InputPlan, Run
from .run_result import Phase, RunSimulation
from .search import simulate

__all__ = ["CheckpointPlan", "EvaluationPlan", "InputPlan", "Run", "run_of", "simulate_run"]

STORAGE_BYTES_PER_S = 2e9
"""What a node writes to shared storage where a plan does not say it: a parallel file system's client."""


def simulate_run(
    graph: Graph,
    cluster: Cluster,
    strategy: Strategy,
    run: Run,
    *,
    model: CostModel | None = None,
    optimizer: str = "adam",
    **options: Any,
) -> RunSimulation:
    """Predict a whole run: its step and its evaluation are simulated (`options` as :func:`hpdlf.sim.simulate`), then its timeline.

    Raises:
        PlanError: the strategy cannot be, or the evaluation's batch does not divide.
    """
    step = simulate(graph, cluster, strategy, model=model, optimizer=optimizer, **options)
    evaluation = None
    if run.checkpoint is not None and run.checkpoint.nbytes is None:
        nbytes = kept_bytes(graph, optimizer=optimizer, mixed=strategy.mixed)
        run = replace(run, checkpoint=replace(run.checkpoint, nbytes=nbytes))
    if run.evaluation is not None:
        forward = evaluation_strategy(strategy, run.evaluation.batch or strategy.batch)
        evaluation = simulate(graph, cluster, forward, model=model, training=False, **options)
    return run_of(step, run, evaluation=evaluation, cluster=cluster, model=model)


def evaluation_strategy(strategy: Strategy, batch: int) -> Strategy:
    """The strategy with another batch, in as many microbatches as divide it, up to those of training.

    Raises:
        PlanError: the batch does not divide over the replicas.
    """
    if batch % strategy.data:
        fitting = max(batch // strategy.data, 1) * strategy.data
        raise PlanError(
            f"An evaluation's batch of {batch} does not divide over {strategy.data} replicas: use {fitting}."
        )
    parts = next(m for m in range(strategy.microbatches, 0, -1) if (batch // strategy.data) % m == 0)
    said = strategy.model_dump() | {"batch": batch, "microbatches": parts}
    if strategy.interleave > 1 and parts % strategy.pipeline:
        said |= {"interleave": 1}
    return Strategy.of(**said)


def run_of(
    step: Simulation,
    run: Run,
    *,
    evaluation: Simulation | None = None,
    cluster: Cluster | None = None,
    model: CostModel | None = None,
) -> RunSimulation:
    """The run whose steps are `step` and whose evaluations are made of steps like `evaluation`.

    Raises:
        PlanError: the run evaluates, and no evaluation is given; it writes checkpoints, and their bytes are not said.
    """
    cluster = cluster or step.hardware
    if cluster is None or (run.evaluation is not None and evaluation is None):
        missing = "cluster" if cluster is None else "evaluation"
        raise PlanError(f"The run's {missing} is not known: give {missing}= to run_of.")
    if run.checkpoint is not None and run.checkpoint.nbytes is None:
        raise PlanError("The checkpoints' size is not known: give nbytes in the CheckpointPlan.")
    bounds = {b: _Timeline(step, run, evaluation, cluster, b).play() for b in ("value", "low", "high")}
    nodes = nodes_in_use(cluster, step.ranks)
    starting, waiting = idle_node(cluster, nodes=nodes), idle_node(cluster, nodes=nodes, waiting=True)
    powers: Mapping[str, NodePower | None] = {
        "start-up": starting,
        "training": step.figures.power,
        "waiting for input": waiting,
        "evaluation": evaluation.figures.power if evaluation else None,
        "checkpoint": waiting,
    }
    phases = tuple(
        Phase(
            name=name,
            times=bounds["value"].times[name],
            # Faster devices wait more for their input: the bounds may come the other way round.
            seconds=Interval(
                value=bounds["value"].seconds[name],
                low=min(bounds[b].seconds[name] for b in bounds),
                high=max(bounds[b].seconds[name] for b in bounds),
                provenance=step.figures.step_s.provenance,
            ),
            power=powers[name],
        )
        for name in powers
        if any(timeline.seconds[name] for timeline in bounds.values()) or name == "training"
    )
    return RunSimulation(
        model=step.model,
        cluster=cluster,
        strategy=step.strategy,
        ranks=step.ranks,
        steps=run.steps(batch=step.batch),
        batch=step.batch,
        phases=phases,
        cost_model=model or CostModel.default(),
    )


class _Timeline:
    """One run at one bound of its pieces' times."""

    def __init__(self, step: Simulation, run: Run, evaluation: Simulation | None, cluster: Cluster, bound: str) -> None:
        self.run, self.cluster, self.step, self.evaluation = run, cluster, step, evaluation
        self.step_s: float = getattr(step.figures.step_s, bound)
        self.evaluation_step_s: float = getattr(evaluation.figures.step_s, bound) if evaluation else 0.0
        self.nodes = nodes_in_use(cluster, step.ranks)
        names = ("start-up", "training", "waiting for input", "evaluation", "checkpoint")
        self.seconds, self.times = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0)
        self.env = simpy.Environment()
        self.written: simpy.Event | None = None
        samples_per_s = run.input.samples_per_s * self.nodes if run.input else inf
        self.load_s = step.batch / samples_per_s
        self.ready_steps = 0.0

    def play(self) -> _Timeline:
        """Run it to its end."""
        self.env.process(self._train())
        self.env.run()
        return self

    def _train(self) -> Generator[simpy.Event, Any, None]:
        yield from self._spend("start-up", self.run.startup_s)
        done = 0
        for until, what in self._events():
            yield from self._steps(until - done)
            done = until
            yield from what()
        if self.written is not None and not self.written.processed:
            began_s = self.env.now
            yield self.written
            self._count("checkpoint", self.env.now - began_s, times=0)

    def _events(self) -> list[tuple[int, Callable[[], Generator[simpy.Event, Any, None]]]]:
        """What happens besides steps: after how many steps, in order."""
        steps, batch = self.run.steps(batch=self.step.batch), self.step.batch
        found: list[tuple[int, int, Callable[[], Generator[simpy.Event, Any, None]]]] = []
        if plan := self.run.checkpoint:
            found += [(at, 1, self._checkpoint) for at in _places(plan.every_samples, plan.every_samples, batch, steps)]
        if evaluating := self.run.evaluation:
            first = evaluating.every_samples if evaluating.first_samples is None else evaluating.first_samples
            places = {*_places(first, evaluating.every_samples, batch, steps), steps}
            found += [(at, 0, self._evaluate) for at in places]
        found.append((steps, 2, self._nothing))
        return [(at, what) for at, _, what in sorted(found, key=lambda each: each[:2])]

    def _nothing(self) -> Generator[simpy.Event, Any, None]:
        yield from ()

    def _spend(self, name: str, seconds: float, times: int = 1) -> Generator[simpy.Event, Any, None]:
        """Time in which no steps are trained, while the hosts go on making samples ready."""
        if seconds:
            self._count(name, seconds, times)
            self._refill(seconds)
            yield self.env.timeout(seconds)

    def _count(self, name: str, seconds: float, times: int) -> None:
        self.seconds[name] += seconds
        self.times[name] += times

    def _refill(self, seconds: float) -> None:
        if self.run.input and self.load_s:
            self.ready_steps = min(self.ready_steps + seconds / self.load_s, self.run.input.prefetch_steps)

    def _steps(self, steps: int) -> Generator[simpy.Event, Any, None]:
        """Steps in a row: the last of them ends when all have been computed, and its samples have come in time."""
        if not steps:
            return
        seconds = steps * self.step_s
        if self.run.input:
            late_s = max(1.0 - self.ready_steps, 0.0) * self.load_s
            fed_s = max(steps - self.ready_steps, 0.0) * self.load_s + self.step_s
            spent_s = max(seconds + late_s, fed_s)
            most = self.run.input.prefetch_steps
            self.ready_steps = min(max(self.ready_steps + spent_s / max(self.load_s, 1e-300) - steps, 0.0), most)
            self._count("waiting for input", spent_s - seconds, times=0)
        else:
            spent_s = seconds
        self._count("training", seconds, times=steps)
        yield self.env.timeout(spent_s)

    def _evaluate(self) -> Generator[simpy.Event, Any, None]:
        assert self.run.evaluation is not None, "evaluations come from the plan"
        assert self.evaluation is not None, "run_of refuses runs without it"
        steps = ceil(self.run.evaluation.samples / self.evaluation.batch)
        yield from self._spend("evaluation", steps * self.evaluation_step_s + self.run.evaluation.overhead_s)

    def _checkpoint(self) -> Generator[simpy.Event, Any, None]:
        plan = self.run.checkpoint
        assert plan is not None, "checkpoints come from the plan"
        assert plan.nbytes is not None, "run_of refuses runs without it"
        seconds = plan.nbytes / self.nodes / (plan.bytes_per_s or STORAGE_BYTES_PER_S)
        if plan.blocking:
            yield from self._spend("checkpoint", seconds)
            return
        if self.written is not None and not self.written.processed:
            began_s = self.env.now
            yield self.written
            self._count("checkpoint", self.env.now - began_s, times=0)
            self._refill(self.env.now - began_s)
        self.times["checkpoint"] += 1
        self.written = self.env.timeout(seconds)


def _places(first: float, every: float, batch: int, steps: int) -> list[int]:
    """After how many steps something happens that happens every so many samples."""
    found, samples = [], first
    while (at := ceil(samples / batch - 1e-9)) <= steps:
        found.append(max(at, 1))
        samples += every
    return found


def kept_bytes(graph: Graph, *, optimizer: str, mixed: bool = False) -> float:
    """Bytes of a checkpoint: what is trained and the optimiser's state, each once, however it is cut over ranks; with `mixed`
    the optimiser's float32 copy too.
    """
    copies = state_copies(optimizer) + (1 if mixed else 0)
    return float(graph.parameter_bytes() + copies * 4 * graph.parameter_count)

"""What the simulator says of a row: the quantity that the row measures."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Literal

from ...errors import DataError, PlanError
from ...sim import Interval
from ...sim.energy import idle_node, nodes_in_use
from ...sim.run import EvaluationPlan, Run, run_of
from ...sim.run_result import RunSimulation
from .system_cases import QUANTITIES, Case
from .system_hardware import ranks_of
from .system_runs import evaluations_of, samples_of
from .system_simulation import Setting, setting_of
from .system_text import dimensions

__all__ = ["Prediction", "predict", "step_flops", "whole_run"]


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The quantity that a row measures, in SI units, and the memory that the fullest device needs; None where nothing is trained."""

    value: Interval
    peak_bytes: int | None
    setting: Setting


def predict(case: Case) -> Prediction:
    """The prediction for a row.

    Raises:
        HpdlfError: the row cannot be simulated; one sentence says why.
    """
    if case.problem:
        raise DataError(f"cells cannot be read: {case.problem}.")
    if case.measured_quantity not in QUANTITIES:
        raise DataError(f"'{case.measured_quantity}' is nothing that is simulated; {', '.join(QUANTITIES)} are.")
    _ = case.measured_si  # the unit is known
    setting = setting_of(case)
    match case.measured_quantity:
        case "inference_latency":
            return Prediction(value=setting.forward().figures.step_s, peak_bytes=None, setting=setting)
        case "train_fwd_bwd_latency":  # the cheapest update stands for none
            return Prediction(value=setting.train("sgd").figures.step_s, peak_bytes=None, setting=setting)
    training = setting.train()
    return Prediction(
        value=_quantity(case, setting, training.figures.step_s), peak_bytes=training.peak_bytes, setting=setting
    )


def _quantity(case: Case, setting: Setting, step: Interval) -> Interval:
    """What a row of training measures, from the time of its steps.

    Raises:
        PlanError: the row does not say over how many samples, or a profile lacks what the quantity needs.
    """
    match case.measured_quantity:
        case "iteration_time":
            return step
        case "throughput":
            return step.inverse(setting.samples * _counted(case, setting))
        case "throughput_per_device":
            return step.inverse(setting.samples * _counted(case, setting) / case.n_devices)
        case "achieved_flops_per_device":
            return step.inverse(step_flops(case, setting.samples) / case.n_devices)
    run = whole_run(case, setting)
    nodes = ceil(ranks_of(case) / setting.cluster.devices_per_node)
    match case.measured_quantity:
        case "time_to_train":
            return run.time_to_train_s
        case "device_hours":
            return run.time_to_train_s.times(case.n_devices)
        case "avg_node_power":
            return _node_w(case, run, nodes)
    watts, seconds = _node_w(case, run, nodes), run.time_to_train_s
    bounds = {name: nodes * getattr(watts, name) * getattr(seconds, name) for name in ("value", "low", "high")}
    return Interval(**bounds, provenance=seconds.provenance)


def whole_run(case: Case, setting: Setting) -> RunSimulation:
    """The row's run from the first step to the last evaluation. Where the source packs samples, lengths are in packed ones. Nodes that
    the batch leaves over evaluate meanwhile, so that nobody waits for it.

    Raises:
        PlanError: the row does not say after how many samples the run stopped.
    """
    samples, packed = samples_of(case, setting.network), setting.network.packed
    if samples is None and case.measured_quantity == "avg_node_power":
        samples = 1e3 * setting.samples  # the mean of steps, whatever their number
    if samples is None:
        raise PlanError("the row does not say after how many samples the run stopped.")
    found = evaluations_of(case, setting.network.family)
    plan = None
    if found is not None and not _spare_nodes(case, setting):
        plan = EvaluationPlan(
            every_samples=found.every_samples / packed,
            samples=ceil(found.samples / packed),
            first_samples=found.first_samples / packed,
        )
    evaluation = setting.evaluate() if plan else None
    return run_of(
        setting.train(), Run(samples=samples / packed, evaluation=plan), evaluation=evaluation, cluster=setting.cluster
    )


def _spare_nodes(case: Case, setting: Setting) -> int:
    """Nodes of the row in which no device trains."""
    return ceil(ranks_of(case) / setting.cluster.devices_per_node) - nodes_in_use(
        setting.cluster, setting.strategy.ranks
    )


def _node_w(case: Case, run: RunSimulation, nodes: int) -> Interval:
    """Mean power of the row's nodes: those that train, and those that the batch leaves over, which wait for an evaluation.

    Raises:
        PlanError: the profile lacks a power.
    """
    meter: Literal["ac", "dc"] = "dc" if dimensions(case).direct_current else "ac"
    watts = run.node_power_w(meter)
    if watts is None:
        raise PlanError(f"the power of {run.cluster.name} is not known: its profile lacks an idle or host power.")
    spare = max(nodes - nodes_in_use(run.cluster, run.ranks), 0)
    waiting = idle_node(run.cluster, nodes=spare, waiting=True) if spare else None
    if waiting is None:
        return watts
    left = waiting.dc_w if meter == "dc" else waiting.ac_w
    mixed = {
        name: ((nodes - spare) * getattr(watts, name) + spare * getattr(left, name)) / nodes
        for name in ("value", "low", "high")
    }
    return Interval(**mixed, provenance=watts.provenance)


def _counted(case: Case, setting: Setting) -> float:
    """How many of the row's units a sample is: tokens, or 1.

    Raises:
        PlanError: images have no tokens.
    """
    if not case.unit.startswith("tokens"):
        return 1.0
    if setting.network.tokens is None:
        raise PlanError(f"the row counts tokens, and {case.model} has none.")
    return float(setting.network.tokens)


def step_flops(case: Case, batch: int) -> float:
    """FLOPs of a step as Narayanan et al. (SC 2021, section 5.1) count them for a GPT with vocabulary V: 96 B s l h^2 (1 + s/(6h) +
    V/(16 l h)) with recomputation, three quarters of it without.

    Raises:
        PlanError: the row lacks a size.
    """
    layers, hidden, length, vocab = case.layers, case.hidden, case.seq_len, case.vocab or 51200
    if not (layers and hidden and length):
        raise PlanError("FLOPs of a step need layers, hidden size and sequence length.")
    whole = 96.0 * batch * length * layers * hidden**2 * (1 + length / (6 * hidden) + vocab / (16 * layers * hidden))
    return whole if case.recompute == "full" else 0.75 * whole

"""What the simulator says of a row: its network, cluster and strategy simulated, and the quantity that the row measures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from ...errors import DataError, PlanError
from ...hwprofiles import Cluster
from ...models.cost import CostModel
from ...models.onnxpp import Graph
from ...models.plan import Strategy
from ...models.program import Program
from ...models.zoo import import_network
from ...sim import Interval, Simulation, simulate_program
from ...sim.cutting import Cutter
from ...sim.simulate import role_memory
from .system_cases import QUANTITIES, Case
from .system_hardware import cluster_of
from .system_networks import Network, network_of
from .system_runs import evaluations_of, samples_of
from .system_strategy import Chosen, candidates

__all__ = ["Prediction", "Setting", "predict", "setting_of", "simulate_setting"]

# Sequences over which a source counts tokens or images are `Network.tokens` tokens long; a billion tokens of a training job.
BLOOM_TOKENS = 366e9
"""Tokens of BLOOM's training (the row's note), where a row of device hours does not say its samples."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Everything that is simulated for a row."""

    case: Case
    network: Network
    cluster: Cluster
    chosen: Chosen
    cutter: Cutter


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The quantity that a row measures, in SI units, and the memory that the fullest device needs."""

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
    setting = setting_of(case)
    simulation = simulate_setting(setting)
    return Prediction(value=quantity(setting, simulation), peak_bytes=simulation.peak_bytes, setting=setting)


@lru_cache(maxsize=64)
def graph_of(network: Network) -> Graph:
    """The network, imported."""
    return import_network(network.name, loss=network.loss, **dict(network.hyper)).graph


@lru_cache(maxsize=32)
def model_for(framework: str) -> CostModel:
    """The cost model under a framework."""
    return CostModel.default()


def _cutter(network: Network, cluster: Cluster, framework: str) -> Cutter:
    """One for all rows with this network, cluster and framework."""
    key = (network, cluster.sha256, framework)
    if key not in _CUTTERS:
        if len(_CUTTERS) >= MOST_CUTTERS:
            _CUTTERS.pop(next(iter(_CUTTERS)))
        _CUTTERS[key] = Cutter(graph_of(network), cluster, model_for(framework))
    return _CUTTERS[key]


_CUTTERS: dict[tuple[Network, str, str], Cutter] = {}
MOST_CUTTERS = 24


def setting_of(case: Case) -> Setting:
    """What a row means, with the first of its candidate strategies that fits into memory. Where none fits, the last, most frugal
    one: the row ran, so it is our account of memory that errs.

    Raises:
        HpdlfError: no network or cluster is known, or the row's numbers contradict each other.
    """
    network, cluster = network_of(case), cluster_of(case)
    cutter = _cutter(network, cluster, f"{case.framework} {case.compiled}".removesuffix(" eager").strip())
    tried = list(candidates(case, network, cluster))
    for chosen in tried[:-1]:
        if _fits(cutter, chosen, network, cluster):
            break
    else:
        chosen = tried[-1]
    return Setting(case=case, network=network, cluster=cluster, chosen=chosen, cutter=cutter)


def _fits(cutter: Cutter, chosen: Chosen, network: Network, cluster: Cluster) -> bool:
    try:
        program = cutter.lower(chosen.strategy, optimizer=network.optimizer)
    except PlanError:
        return False
    return all(memory.fits for memory in role_memory(program, cluster))


def simulate_setting(setting: Setting) -> Simulation:
    """A step of training; of its forward pass, or its passes without the update, where the row measures those."""
    case, cutter, strategy = setting.case, setting.cutter, setting.chosen.strategy
    if case.measured_quantity == "inference_latency":
        return _simulate(setting, cutter.lower_evaluation(strategy), strategy)
    without_update = case.measured_quantity == "train_fwd_bwd_latency"
    optimizer = "sgd" if without_update else setting.network.optimizer
    return _simulate(setting, cutter.lower(strategy, optimizer=optimizer), strategy)


def _simulate(setting: Setting, program: Program, strategy: Strategy) -> Simulation:
    return simulate_program(
        program,
        setting.cutter.local(strategy).graph,
        setting.cluster,
        model=setting.cutter.model,
        precision=strategy.precision,
        optimizer=setting.network.optimizer,
        strategy=str(strategy),
    )


def quantity(setting: Setting, simulation: Simulation) -> Interval:
    """What the row measures, read off the simulation.

    Raises:
        PlanError: the row does not say over how many samples, or of a profile's power nothing is known.
    """
    case, step = setting.case, simulation.figures.step_s
    batch = float(simulation.batch) * setting.network.packed
    match case.measured_quantity:
        case "iteration_time" | "inference_latency" | "train_fwd_bwd_latency":
            return step
        case "throughput":
            return step.inverse(batch * _counted(setting))
        case "throughput_per_device":
            return step.inverse(batch * _counted(setting) / case.n_devices)
        case "achieved_flops_per_device":
            return step.inverse(step_flops(case, int(batch)) / case.n_devices)
        case "device_hours":
            return _run_s(setting, simulation).times(case.n_devices)
        case "time_to_train":
            return _run_s(setting, simulation)
    raise PlanError(f"{case.measured_quantity} is not simulated yet.")


def _counted(setting: Setting) -> float:
    """How many of the row's units a sample is: tokens, or 1."""
    unit = setting.case.unit
    if not unit.startswith("tokens"):
        return 1.0
    if setting.network.tokens is None:
        raise PlanError(f"the row counts tokens, and {setting.case.model} has none.")
    return float(setting.network.tokens)


def step_flops(case: Case, batch: int) -> float:
    """FLOPs of a step as Narayanan et al. (SC 2021, section 5.1) count them for a GPT with vocabulary V: 96 B s l h^2 (1 + s/(6h) +
    V/(16 l h)) with recomputation, three quarters of it without.

    Raises:
        PlanError: the row lacks a size.
    """
    layers, hidden, length, vocab = case.layers, case.hidden, case.seq_len, case.vocab or 51200
    if not (layers and hidden and length):
        raise PlanError(f"{case.case_id}: FLOPs need layers, hidden size and sequence length.")
    whole = 96.0 * batch * length * layers * hidden**2 * (1 + length / (6 * hidden) + vocab / (16 * layers * hidden))
    return whole if case.recompute == "full" else 0.75 * whole


def _run_s(setting: Setting, simulation: Simulation) -> Interval:
    """Seconds from the first step to the last evaluation."""
    case = setting.case
    samples = samples_of(case)
    if samples is None and case.measured_quantity == "device_hours" and setting.network.tokens:
        samples = BLOOM_TOKENS / setting.network.tokens
    if samples is None:
        raise PlanError("the row does not say after how many samples the run stopped.")
    training = simulation.figures.step_s.times(samples / (simulation.batch * setting.network.packed))
    plan = evaluations_of(case, setting.network.family)
    if plan is None:
        return training
    times = max(1.0, (samples - plan.first_samples) // plan.every_samples + 1)
    forward = _evaluation(setting)
    steps = -(-plan.samples // (forward.batch * setting.network.packed))
    return training.plus(forward.figures.step_s.times(times * steps))


def _evaluation(setting: Setting) -> Simulation:
    """The forward pass of one microbatch on every replica; of as many as there are stages where they form a pipeline."""
    training = setting.chosen.strategy
    many = training.pipeline if training.pipeline > 1 else 1
    fields = training.model_dump() | {
        "batch": training.data * training.microbatch_samples * many, "microbatches": many, "recompute": "none",
    }  # fmt: skip
    strategy = Strategy.of(**fields)
    return _simulate(setting, setting.cutter.lower_evaluation(strategy), strategy)

"""A row's setting, simulated. What rows share is made once: networks, what it takes to cut them, programs and simulations."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import TypeVar

from ...errors import PlanError
from ...hwprofiles import Cluster
from ...models.cost import CostModel
from ...models.cost.software import Software, load_software
from ...models.onnxpp import Graph
from ...models.plan import Strategy
from ...models.program import Program
from ...models.zoo import import_network
from ...sim import RoleMemory, Simulation, simulate_program
from ...sim.cutting import Cutter
from ...sim.simulate import role_memory
from .system_cases import Case
from .system_hardware import cluster_of, narrowed
from .system_networks import Network, network_of
from .system_strategy import Chosen, candidates, precision_of
from .system_text import software_name

__all__ = ["Setting", "setting_of"]

T = TypeVar("T")
# What vendors call a GB of memory on a device is a GiB, of which contexts and buffers of libraries hold some percent.
USABLE = 0.96 * 2**30 / 1e9
# Stacks that train in 8 bits keep the operands of products in 8 bits for the backward pass, which are two fifths of what a layer
# keeps (2 + 2 + 2 + 8 of 34 bytes a token and channel: Korthikanti et al. 2022, section 4.1), weights that are not trained, too, and
# sums of gradients in 16 bits rather than 32.
EIGHT_BIT_RESIDUALS, EIGHT_BIT_FROZEN, EIGHT_BIT_GRADIENTS = 0.8, 0.5, 0.5
MOST_CUTTERS, MOST_PROGRAMS, MOST_SIMULATIONS = 24, 4, 8


@lru_cache(maxsize=64)
def graph_of(network: Network) -> Graph:
    """The network, imported."""
    return import_network(network.name, loss=network.loss, **dict(network.hyper)).graph


class _Kept(OrderedDict[Hashable, T]):
    """The last few values by key."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def get_or_make(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value of `key`, made where it is not kept."""
        if key not in self:
            self[key] = make()
            if len(self) > self.most:
                self.popitem(last=False)
        self.move_to_end(key)
        return self[key]


_cutters: _Kept[Cutter] = _Kept(MOST_CUTTERS)
_programs: _Kept[Program] = _Kept(MOST_PROGRAMS)
_simulations: _Kept[Simulation] = _Kept(MOST_SIMULATIONS)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Everything that is simulated for a row."""

    network: Network
    cluster: Cluster
    software: Software
    strategy: Strategy
    inferred: tuple[str, ...] = ()

    @property
    def samples(self) -> int:
        """Samples of the source in one step."""
        return self.strategy.batch * self.network.packed

    def train(self, optimizer: str = "") -> Simulation:
        """A step of training, with the network's optimiser unless another is given."""
        chosen = optimizer or self.network.optimizer
        return self._simulate(("train", chosen), lambda: self._program(chosen), self.strategy, chosen)

    def forward(self) -> Simulation:
        """The forward pass of a step's samples."""
        strategy = self.strategy
        return self._simulate(
            ("forward",), lambda: self._cutter.lower_evaluation(strategy), strategy, self.network.optimizer
        )

    def evaluate(self) -> Simulation:
        """The forward pass of one microbatch on every replica; of as many as there are ranks in a pipeline."""
        many = self.strategy.pipeline
        fields = self.strategy.model_dump() | {
            "batch": self.strategy.data * self.strategy.microbatch_samples * many, "microbatches": many, "recompute": "none",
        }  # fmt: skip
        strategy = Strategy.of(**fields)
        return self._simulate(
            ("forward",), lambda: self._cutter.lower_evaluation(strategy), strategy, self.network.optimizer
        )

    def fits(self) -> bool:
        """Whether every role fits into its device; also False where there is no such program."""
        try:
            program = self._program(self.network.optimizer)
        except PlanError:
            return False
        return all(
            self._held_bytes(memory) <= USABLE * memory.capacity_bytes for memory in role_memory(program, self.cluster)
        )

    def _held_bytes(self, memory: RoleMemory) -> float:
        """What a role holds at its peak, with what is kept in 8 bits."""
        if self.strategy.precision != "float8":
            return memory.peak_bytes
        lora = dict(self.network.hyper).get("lora_rank")
        spared = {
            "residuals": 1.0 - EIGHT_BIT_RESIDUALS,
            "gradients": 1.0 - EIGHT_BIT_GRADIENTS,
            "parameters": 1.0 - EIGHT_BIT_FROZEN if lora else 0.0,
        }
        return memory.peak_bytes - sum(share * memory.by_content.get(content, 0) for content, share in spared.items())

    @property
    def _cutter(self) -> Cutter:
        key = (self.network, self.cluster.sha256, self.software.fuses)
        return _cutters.get_or_make(
            key, lambda: Cutter(graph_of(self.network), self.cluster, CostModel.default(), self.software)
        )

    def _program(self, optimizer: str) -> Program:
        key = (self.network, self.cluster.sha256, self.strategy, optimizer)
        return _programs.get_or_make(key, lambda: self._cutter.lower(self.strategy, optimizer=optimizer))

    def _simulate(
        self, what: tuple[str, ...], program: Callable[[], Program], strategy: Strategy, optimizer: str
    ) -> Simulation:
        key = (what, self.network, self.cluster.sha256, self.software.name, strategy)
        return _simulations.get_or_make(
            key,
            lambda: simulate_program(
                program(),
                self._cutter.local(strategy).graph,
                self.cluster,
                model=self._cutter.model,
                software=self.software,
                precision=strategy.precision,
                mixed=strategy.mixed,
                optimizer=optimizer,
                strategy=str(strategy),
            ),
        )


def setting_of(case: Case) -> Setting:
    """What a row means, with the first of its candidate strategies that fits into memory. Where none fits, the last, most frugal
    one: the row ran, so it is our account of memory that errs.

    Raises:
        HpdlfError: no network or cluster is known, or the row's numbers contradict each other.
    """
    network, cluster = network_of(case), cluster_of(case)
    if precision_of(case, network, cluster).narrow:
        cluster = narrowed(cluster)
    software = load_software(software_name(case))

    def setting(chosen: Chosen) -> Setting:
        return Setting(
            network=network, cluster=cluster, software=software, strategy=chosen.strategy, inferred=chosen.inferred
        )

    tried = [setting(chosen) for chosen in candidates(case, network, cluster)]
    for _, same in groupby(tried[:-1], key=lambda one: one.strategy.microbatch_samples):
        group = list(same)
        if len(group) > 1 and not group[-1].fits():  # not even the most frugal one of this microbatch
            continue
        if (first := next((one for one in group if one.fits()), None)) is not None:
            return first
    return tried[-1]

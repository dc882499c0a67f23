"""From a strategy to a program: cutting a graph by predicted operator times, and lowering it."""

from __future__ import annotations

from ..hwprofiles import Cluster
from ..models.cost import CostModel
from ..models.cost.software import Software
from ..models.onnxpp import Graph
from ..models.plan import Local, Partition, Strategy, localise, partition
from ..models.plan.partition import segment_borders
from ..models.program import Program
from ..models.program.lower import lower, lower_evaluation

__all__ = ["Cutter", "build"]


class Cutter:
    """Partitions of one graph for one cluster. Many strategies share one, and what it takes to find it."""

    def __init__(self, graph: Graph, cluster: Cluster, model: CostModel, software: Software | None = None) -> None:
        self.graph, self.cluster, self.model, self.software = graph, cluster, model, software
        self._operator_s: dict[tuple[object, ...], list[float]] = {}
        self._cuts: dict[tuple[object, ...], Partition] = {}
        self._locals: dict[tuple[object, ...], Local] = {}
        self.screened: dict[tuple[object, ...], object] = {}  # what estimates of strategies have in common

    def local(self, strategy: Strategy) -> Local:
        """The graph as one rank of `strategy` sees it.

        Raises:
            PlanError: the graph has nothing to split along an axis of the strategy.
        """
        key = _split(strategy)
        if key not in self._locals:
            self._locals[key] = localise(self.graph, strategy)
        return self._locals[key]

    def cut(self, strategy: Strategy) -> Partition:
        """The graph (as one rank sees it) cut for `strategy`, by predicted operator times or by layers.

        Raises:
            PlanError: the graph has too few operators for the stages.
        """
        samples, stages = strategy.microbatch_samples, strategy.stages
        reduces = strategy.data * strategy.context > 1 and strategy.solver == "synchronous"
        graph = self.local(strategy).graph
        # The executor's buckets are segments; otherwise blocks are, and buckets are put together of them.
        bucket_bytes = strategy.bucket_bytes if reduces and not strategy.simulated_only else None
        times = stages > 1 and strategy.cut == "time"
        key = (
            *_split(strategy), stages, strategy.cut, bucket_bytes, samples if times else None,
            strategy.precision if times else None, strategy.recompute, strategy.zero == 3, bool(strategy.simulated_only),
            strategy.data * strategy.context > 1,
        )  # fmt: skip
        if key not in self._cuts:
            link = self.cluster.link or self.cluster.node.link
            self._cuts[key] = partition(
                graph,
                operator_s=self.operator_times(strategy) if times else [1.0] * len(graph.operators),
                stages=stages,
                bucket_bytes=bucket_bytes,
                samples=samples,
                seconds_per_byte=1.0 / link.message_bandwidth_bytes_per_s if link else 0.0,
                layers=strategy.cut == "layers",
                borders=segment_borders(graph, strategy),
                untied=bool(strategy.simulated_only),
            )
        return self._cuts[key]

    def lower(
        self, strategy: Strategy, *, optimizer: str | None = "adam", checkpoint_every: int | None = None
    ) -> Program:
        """The program of a training step under `strategy`."""
        local = self.local(strategy)
        return lower(
            local.graph,
            self.cut(strategy),
            strategy,
            optimizer=optimizer,
            checkpoint_every=checkpoint_every,
            experts=local.experts,
            fused=self.software is not None and self.software.fuses in ("all", "pairs"),
        )

    def lower_evaluation(self, strategy: Strategy) -> Program:
        """The program of a forward pass under `strategy`."""
        local = self.local(strategy)
        return lower_evaluation(local.graph, self.cut(strategy), strategy, experts=local.experts)

    def operator_times(self, strategy: Strategy) -> list[float]:
        """Seconds of every operator, forward and backward, on one microbatch; what is communicated counts nothing."""
        samples, precision = strategy.microbatch_samples, strategy.precision
        key = (*_split(strategy), samples, precision)
        if key not in self._operator_s:
            graph = self.local(strategy).graph
            self._operator_s[key] = [
                0.0
                if o.family == "collective"
                else self.model.compute(
                    graph,
                    [((o.name,), "forward"), ((o.name,), "backward")],
                    batch=samples,
                    device=self.cluster.device,
                    precision=precision,
                ).seconds
                for o in graph.operators
            ]
        return self._operator_s[key]


def _split(strategy: Strategy) -> tuple[object, ...]:
    return strategy.tensor, strategy.context, strategy.expert, strategy.sequence_parallel


def build(
    graph: Graph,
    cluster: Cluster,
    strategy: Strategy,
    *,
    model: CostModel | None = None,
    optimizer: str = "adam",
    checkpoint_every: int | None = None,
) -> tuple[Partition, Program]:
    """Partition `graph` for `strategy` on `cluster` by predicted operator times, and lower it.

    Raises:
        PlanError: the graph has too few operators for the stages, no loss, or nothing to train.
    """
    cutter = Cutter(graph, cluster, model or CostModel.default())
    return cutter.cut(strategy), cutter.lower(strategy, optimizer=optimizer, checkpoint_every=checkpoint_every)

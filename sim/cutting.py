"""From a strategy to a program: cutting a graph by predicted operator times, and lowering it."""

from __future__ import annotations

from ..hwprofiles import Cluster
from ..models.cost import CostModel
from ..models.onnxpp import Graph
from ..models.plan import Partition, Strategy, partition
from ..models.program import Program
from ..models.program.lower import lower

__all__ = ["Cutter", "build"]


class Cutter:
    """Partitions of one graph for one cluster. Many strategies share one, and what it takes to find it."""

    def __init__(self, graph: Graph, cluster: Cluster, model: CostModel) -> None:
        self.graph, self.cluster, self.model = graph, cluster, model
        self._operator_s: dict[tuple[int, str], list[float]] = {}
        self._cuts: dict[tuple[object, ...], Partition] = {}

    def cut(self, strategy: Strategy) -> Partition:
        """The graph cut for `strategy`, by predicted operator times.

        Raises:
            PlanError: the graph has too few operators for the stages.
        """
        samples, stages = strategy.microbatch_samples, strategy.pipeline
        reduces = strategy.data > 1 and strategy.solver == "synchronous"
        bucket_bytes = strategy.bucket_bytes if reduces else None
        key = (samples if stages > 1 else None, stages, bucket_bytes, strategy.precision)
        if key not in self._cuts:
            link = self.cluster.link or self.cluster.node.link
            self._cuts[key] = partition(
                self.graph,
                operator_s=self._times(samples, strategy.precision)
                if stages > 1
                else [1.0] * len(self.graph.operators),
                stages=stages,
                bucket_bytes=bucket_bytes,
                samples=samples,
                seconds_per_byte=1.0 / link.message_bandwidth_bytes_per_s if link else 0.0,
            )
        return self._cuts[key]

    def _times(self, samples: int, precision: str) -> list[float]:
        """Seconds of every operator, forward and backward, on one microbatch."""
        if (samples, precision) not in self._operator_s:
            self._operator_s[samples, precision] = [
                self.model.compute(
                    self.graph,
                    [((o.name,), "forward"), ((o.name,), "backward")],
                    batch=samples,
                    device=self.cluster.device,
                    precision=precision,
                ).seconds
                for o in self.graph.operators
            ]
        return self._operator_s[samples, precision]


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
    cut = Cutter(graph, cluster, model or CostModel.default()).cut(strategy)
    return cut, lower(graph, cut, strategy, optimizer=optimizer, checkpoint_every=checkpoint_every)

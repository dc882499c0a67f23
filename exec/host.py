"""What the host does for a rank: it loads samples, reports the loss, and scores predictions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from ..errors import RunError
from ..models.onnxpp import Graph
from ..models.plan import Strategy
from ..models.program import Instruction, Role, Task
from .data import Dataset
from .interpreter import Action, Values
from .metrics import METRICS, value
from .sampling import Sampler, padded_batches, part_of_batch

__all__ = ["EvaluationHost", "TrainingHost", "put"]

SMALL_BYTES = 1 << 20
"""Samples of fewer bytes are put on the device by a compiled call, which copies twice but costs less to begin."""


class TrainingHost:
    """Loads the samples of every microbatch and hands every step's loss to `report(step, loss)`."""

    def __init__(
        self,
        role: Role,
        *,
        dataset: Dataset,
        sampler: Sampler,
        strategy: Strategy,
        replica: int,
        report: Callable[[int, float], None],
    ) -> None:
        self.role, self.dataset, self.sampler = role, dataset, sampler
        self.strategy, self.replica, self.report = strategy, replica, report

    def actions(self) -> dict[str, Action]:
        """By instruction id."""
        return {"load": self._load, "report.loss": self._report}

    def samples(self, step: int, microbatch: int) -> np.ndarray:
        """Global indices of the samples of this rank's microbatch."""
        strategy = self.strategy
        return self.sampler.rank_indices(
            step, microbatch, self.replica, replicas=strategy.data, microbatches=strategy.microbatches
        )

    def _load(self, instruction: Instruction, task: Task, step: int, values: Values) -> Values:
        return {"data": _loaded(self.dataset, self.samples(step, task.microbatch or 0), self.role)}

    def _report(self, instruction: Instruction, task: Task, step: int, values: Values) -> Values:
        loss = float(np.asarray(values["loss"]).reshape(()))
        if not np.isfinite(loss):
            raise RunError(
                f"The loss became {loss} at step {step}. Lower `learning_rate` under [optimizer] in the recipe (or add "
                "`clip_tensor_norm`), then plan, approve and train again."
            )
        self.report(step, loss)
        return {}


class EvaluationHost:
    """Loads the samples that are held out and adds up their score: a step of the evaluation's program is a batch."""

    def __init__(
        self,
        role: Role,
        graph: Graph,
        *,
        dataset: Dataset,
        held_out: np.ndarray,
        metric: str,
        strategy: Strategy,
        replica: int,
    ) -> None:
        self.role, self.graph, self.dataset, self.metric = role, graph, dataset, metric
        self.strategy, self.replica = strategy, replica
        self.batches = padded_batches(held_out, strategy.batch) if metric != "none" else []
        self._score = np.zeros(2)

    def actions(self) -> dict[str, Action]:
        """By instruction id."""
        return {"load": self._load, "score": self._add, "report.score": self._keep}

    def start(self) -> None:
        """Forget the last evaluation's score."""
        self._score = np.zeros(2)

    def result(self, sum_over_ranks: Callable[[np.ndarray], np.ndarray] | None = None) -> float | None:
        """The metric over all that was scored; `sum_over_ranks` where every rank has scored only its own."""
        return value(sum_over_ranks(self._score) if sum_over_ranks else self._score)

    def _load(self, instruction: Instruction, task: Task, step: int, values: Values) -> Values:
        return {"data": _loaded(self.dataset, self._part(self.batches[step][0], task), self.role)}

    def _add(self, instruction: Instruction, task: Task, step: int, values: Values) -> Values:
        counts = self._part(self.batches[step][1], task)
        predictions = np.asarray(values["predictions"][self.graph.outputs[0]])
        labels = np.asarray(values["data"][self.graph.targets[0]])
        return {"score": METRICS[self.metric](predictions, labels, counts) + values.get("score", 0.0)}

    def _keep(self, instruction: Instruction, task: Task, step: int, values: Values) -> Values:
        self._score = self._score + np.asarray(values["score"])
        return {}

    def _part(self, batch: np.ndarray, task: Task) -> np.ndarray:
        strategy = self.strategy
        return part_of_batch(
            batch,
            microbatch=task.microbatch or 0,
            replica=self.replica,
            replicas=strategy.data,
            microbatches=strategy.microbatches,
        )


def _loaded(dataset: Dataset, indices: np.ndarray, role: Role) -> dict[str, jax.Array]:
    return put(dataset.read(indices, role.buffer["data"].tensors))


def put(arrays: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Arrays on the device, by name. NumPy's are given up: their memory may be read later, or kept."""
    small = sum(array.nbytes for array in arrays.values()) < SMALL_BYTES
    return dict(_handed_over(arrays) if small else jax.device_put(arrays))


@jax.jit
def _handed_over(arrays: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """The arrays on the device: a compiled call takes them over in 40 us, `device_put` in 200."""
    return arrays

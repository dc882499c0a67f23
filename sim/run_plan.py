"""What a run is to do: how long to train, when to evaluate and to write checkpoints, where samples come from.

>>> Run(samples=3_000_000, evaluation=EvaluationPlan(every_samples=150_000, samples=10_000)).steps(batch=768)
3907
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, inf
from typing import Any

from ..errors import PlanError

__all__ = ["CheckpointPlan", "EvaluationPlan", "InputPlan", "Run"]


@dataclass(frozen=True, kw_only=True)
class EvaluationPlan:
    """Evaluate on `samples` samples after every `every_samples` of training, first after `first_samples` (None: after
    `every_samples`), and at the end of the run.

    batch       samples a step over all ranks; None: as many as in training
    overhead_s  of one evaluation: what the host does with the predictions
    """

    every_samples: float
    samples: int
    first_samples: float | None = None
    batch: int | None = None
    overhead_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class CheckpointPlan:
    """Write a checkpoint after every `every_samples`.

    nbytes        over all ranks; None: what is trained and the optimiser's state, each once
    bytes_per_s   of one node; None: that of a client of a parallel file system
    blocking      training stands still meanwhile; otherwise only where the one before is not written yet
    """

    every_samples: float
    nbytes: float | None = None
    bytes_per_s: float | None = None
    blocking: bool = True


@dataclass(frozen=True, kw_only=True)
class InputPlan:
    """How fast a node makes samples ready: its `cores` decode and augment one in `core_s_per_sample` each, from storage that
    delivers `bytes_per_s`.

    prefetch_steps   how many steps' samples wait ready at most
    """

    core_s_per_sample: float = 0.0
    cores: int = 1
    bytes_per_sample: float = 0.0
    bytes_per_s: float = inf
    prefetch_steps: float = 4.0

    @property
    def samples_per_s(self) -> float:
        """Samples that one node makes ready in a second."""
        decoded = self.cores / self.core_s_per_sample if self.core_s_per_sample else inf
        read = self.bytes_per_s / self.bytes_per_sample if self.bytes_per_sample else inf
        return min(decoded, read)


@dataclass(frozen=True, kw_only=True)
class Run:
    """How long to train, by one of `samples`, `steps`, or `epochs` of `samples_per_epoch`; and what else happens.

    startup_s   before the first step: processes, compilation, connections, the loader's first samples
    input       None: samples are there whenever they are needed, as synthetic ones are
    """

    samples: float | None = None
    total_steps: int | None = None
    epochs: float | None = None
    samples_per_epoch: int | None = None
    startup_s: float = 0.0
    evaluation: EvaluationPlan | None = None
    checkpoint: CheckpointPlan | None = None
    input: InputPlan | None = None

    def __post_init__(self) -> None:
        said = [name for name in ("samples", "total_steps", "epochs") if getattr(self, name) is not None]
        if len(said) != 1:
            raise PlanError(
                f"A run is as long as samples, total_steps or epochs say; given are {said or 'none'}: give one."
            )
        if self.epochs is not None and not self.samples_per_epoch:
            raise PlanError("Epochs need samples_per_epoch: give the number of samples in the data.")
        plans: tuple[Any, ...] = (self.evaluation, self.checkpoint)
        lengths = [getattr(self, said[0]), *(plan.every_samples for plan in plans if plan is not None)]
        if not all(0 < length < inf for length in lengths) or not 0 <= self.startup_s < inf:
            raise PlanError(
                "Lengths and intervals of a run are above 0, and its start-up is not negative: correct them."
            )
        if self.input is not None and not (self.input.samples_per_s > 0 and self.input.prefetch_steps >= 1):
            raise PlanError(
                "The input has to make samples ready, and at least one step's at a time: correct its numbers."
            )

    def steps(self, *, batch: int) -> int:
        """Optimiser updates; the last may go beyond the samples."""
        if self.total_steps is not None:
            return self.total_steps
        samples = self.samples if self.samples is not None else (self.epochs or 0.0) * (self.samples_per_epoch or 0)
        return max(ceil(samples / batch - 1e-9), 1)

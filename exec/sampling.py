"""Which sample is used when: a function of seed, epoch and step alone, never of how the batch is cut over ranks.

The samples to train on get a new order every epoch; step `s` takes the next `batch` of them; replica r's microbatch m
of a global batch is a run of neighbours in it. So whatever the number of replicas and microbatches, together they take
the same samples.

>>> sampler = Sampler(train=np.arange(10), batch=4, seed=1)
>>> sampler.steps_per_epoch, sampler.epoch_of(5)
(2, 2)
>>> whole = sampler.global_batch(3)
>>> parts = [sampler.rank_indices(3, m, r, replicas=2, microbatches=2) for r in range(2) for m in range(2)]
>>> np.concatenate(parts).tolist() == whole.tolist()
True
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..errors import DataError
from ..models.plan.recipe import Recipe
from .random_streams import permutation

__all__ = ["Sampler", "padded_batches", "part_of_batch", "split_samples"]


def split_samples(samples: int, recipe: Recipe) -> tuple[np.ndarray, np.ndarray]:
    """Samples to train on and to evaluate on, each ascending: a cut through a permutation by the recipe's seed."""
    order = permutation(samples, seed=recipe.seed, purpose="split")
    kept = recipe.evaluation_samples(samples)
    return np.sort(order[kept:]), np.sort(order[:kept])


def part_of_batch(batch: np.ndarray, *, microbatch: int, replica: int, replicas: int, microbatches: int) -> np.ndarray:
    """The samples of a global batch (first axis) that one replica takes in one of its microbatches."""
    size, left = divmod(len(batch), replicas * microbatches)
    if left:
        raise DataError(
            f"A batch of {len(batch)} does not divide into {replicas} replicas x {microbatches} microbatches: plan it "
            "again with a "
            f"`--batch` that is a multiple of {replicas * microbatches}."
        )
    start = (replica * microbatches + microbatch) * size
    return batch[start : start + size]


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """Batches of the sample indices in `train` (int64 [n]), `batch` at a time. What does not fill a batch is left out
    of that epoch.

    Raises:
        DataError: there are fewer samples than one batch.
    """

    train: np.ndarray
    batch: int
    seed: int
    shuffle: bool = True
    _orders: dict[int, np.ndarray] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.train) < self.batch:
            raise DataError(
                f"The data has {len(self.train)} samples to train on, too few for one batch of {self.batch}: plan a "
                "smaller one with "
                f"`hpdlf plan --batch {max(len(self.train), 1)}`, or give more data."
            )

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in one pass."""
        return len(self.train) // self.batch

    def epoch_of(self, step: int) -> int:
        """The epoch, from 0, that step number `step`, from 0, belongs to."""
        return step // self.steps_per_epoch

    def order(self, epoch: int) -> np.ndarray:
        """The epoch's order of all training samples; the last two epochs asked for are remembered."""
        if not self.shuffle:
            return self.train
        if epoch not in self._orders:
            while len(self._orders) > 1:
                self._orders.pop(next(iter(self._orders)))
            self._orders[epoch] = self.train[
                permutation(len(self.train), seed=self.seed, purpose="order", number=epoch)
            ]
        return self._orders[epoch]

    def global_batch(self, step: int) -> np.ndarray:
        """The sample indices of step number `step`, int64 [batch]."""
        epoch, within = divmod(step, self.steps_per_epoch)
        return self.order(epoch)[within * self.batch : (within + 1) * self.batch]

    def rank_indices(
        self, step: int, microbatch: int, data_rank: int, *, replicas: int, microbatches: int
    ) -> np.ndarray:
        """The samples of one microbatch of replica number `data_rank`, int64 [batch / (replicas * microbatches)]."""
        return part_of_batch(
            self.global_batch(step),
            microbatch=microbatch,
            replica=data_rank,
            replicas=replicas,
            microbatches=microbatches,
        )


def padded_batches(indices: np.ndarray, batch: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """`indices` in their order as batches of one size, for evaluation: (indices [batch], which of them count, bool
    [batch]).

    The last batch is filled up with its own first sample, which does not count again.

    >>> [(i.tolist(), v.tolist()) for i, v in padded_batches(np.array([3, 5, 8]), 2)]
    [([3, 5], [True, True]), ([8, 8], [True, False])]
    """
    batches = []
    for start in range(0, len(indices), batch):
        chosen = indices[start : start + batch]
        missing = batch - len(chosen)
        valid = np.arange(batch) < len(chosen)
        batches.append((np.concatenate([chosen, np.repeat(chosen[:1], missing)]), valid))
    return batches

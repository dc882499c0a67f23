"""Which sample when: every one once an epoch, and the same whatever the cut."""

import doctest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpdlf.errors import DataError
from hpdlf.exec import random_streams, sampling
from hpdlf.exec.sampling import Sampler, padded_batches, split_samples
from hpdlf.models.plan.recipe import Recipe

seeds = st.integers(0, 2**63 - 1)


@pytest.mark.parametrize("module", [sampling, random_streams])
def test_doctests(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]


@given(samples=st.integers(1, 200), batch=st.integers(1, 50), seed=seeds, epoch=st.integers(0, 3))
def test_every_sample_once_an_epoch_but_for_what_does_not_fill_a_batch(
    samples: int, batch: int, seed: int, epoch: int
) -> None:
    if samples < batch:
        with pytest.raises(DataError, match="too few for one batch"):
            Sampler(train=np.arange(samples), batch=batch, seed=seed)
        return
    sampler = Sampler(train=np.arange(samples), batch=batch, seed=seed)
    steps = range(epoch * sampler.steps_per_epoch, (epoch + 1) * sampler.steps_per_epoch)
    seen = np.concatenate([sampler.global_batch(step) for step in steps])
    assert len(np.unique(seen)) == len(seen) == samples // batch * batch
    assert {sampler.epoch_of(step) for step in steps} == {epoch}


@given(
    replicas=st.integers(1, 5),
    microbatches=st.integers(1, 5),
    size=st.integers(1, 4),
    step=st.integers(0, 20),
    seed=seeds,
)
def test_any_cut_partitions_the_same_global_batch(
    replicas: int, microbatches: int, size: int, step: int, seed: int
) -> None:
    batch = replicas * microbatches * size
    sampler = Sampler(train=np.arange(300), batch=batch, seed=seed)
    parts = [
        sampler.rank_indices(step, m, r, replicas=replicas, microbatches=microbatches)
        for r in range(replicas)
        for m in range(microbatches)
    ]
    assert all(len(part) == size for part in parts)
    whole = Sampler(train=np.arange(300), batch=batch, seed=seed).rank_indices(step, 0, 0, replicas=1, microbatches=1)
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(DataError, match="multiple of 3"):
        Sampler(train=np.arange(10), batch=4, seed=0).rank_indices(0, 0, 0, replicas=3, microbatches=1)


@given(samples=st.integers(0, 300), fraction=st.floats(0, 0.99), seed=seeds)
def test_the_split_is_a_partition(samples: int, fraction: float, seed: int) -> None:
    recipe = Recipe(seed=seed, evaluation={"fraction": fraction})
    train, kept = split_samples(samples, recipe)
    assert len(kept) == round(fraction * samples)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, kept])), np.arange(samples))


def test_the_order_changes_with_epoch_and_seed_and_never_otherwise() -> None:
    first = Sampler(train=np.arange(1000), batch=10, seed=1)
    again = Sampler(train=np.arange(1000), batch=10, seed=1)
    assert [first.global_batch(s).tolist() for s in (0, 250, 99)] == [
        again.global_batch(s).tolist() for s in (0, 250, 99)
    ]
    assert first.order(0).tolist() != first.order(1).tolist()
    assert first.order(0).tolist() != Sampler(train=np.arange(1000), batch=10, seed=2).order(0).tolist()
    unshuffled = Sampler(train=np.arange(1000), batch=10, seed=1, shuffle=False)
    assert unshuffled.global_batch(101).tolist() == list(range(10, 20))


def test_the_streams_are_what_they_were() -> None:
    """Resuming years later under another NumPy must find the same order: the words are pinned."""
    assert random_streams.permutation(8, seed=42, purpose="order", number=3).tolist() == PINNED
    draws = random_streams.uniform(20_000, seed=5, purpose="weight")
    assert abs(draws.mean() - 0.5) < 0.01
    assert abs(draws.var() - 1 / 12) < 0.002
    assert 0 <= draws.min() < draws.max() < 1


PINNED = [5, 1, 3, 4, 0, 7, 2, 6]


@given(count=st.integers(0, 50), batch=st.integers(1, 20))
def test_padding_counts_every_sample_once(count: int, batch: int) -> None:
    indices = np.arange(count) * 3
    batches = padded_batches(indices, batch)
    assert all(len(chosen) == len(valid) == batch for chosen, valid in batches)
    counted = [chosen[valid] for chosen, valid in batches]
    np.testing.assert_array_equal(np.concatenate([*counted, indices[:0]]), indices)

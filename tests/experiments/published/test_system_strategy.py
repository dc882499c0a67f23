"""What rows do not say of how a network was cut."""

import pytest

from hpdlf.errors import PlanError
from hpdlf.experiments.published.system_hardware import cluster_of
from hpdlf.experiments.published.system_networks import network_of
from hpdlf.experiments.published.system_strategy import DEFAULT_IMAGES, ONE_BUCKET_BYTES, candidates

GPT = {
    "model": "GPT",
    "layers": 16,
    "hidden": 64,
    "heads": 4,
    "seq_len": 32,
    "hardware": "A100-SXM4-80GB",
    "devices_per_node": 8,
}
RESNET = {"model": "ResNet-50", "hardware": "V100", "devices_per_node": 8}


@pytest.fixture
def chosen(case):
    def choose(**columns):
        row = case(**{"measured_quantity": "throughput", **columns})
        return list(candidates(row, network_of(row), cluster_of(row)))

    return choose


def test_a_row_that_says_all_means_one_strategy(chosen):
    (one,) = chosen(
        **GPT, n_devices=64, tp=2, pp=4, dp=8, microbatch=2, global_batch=64, recompute="full", zero_stage=1, precision="bf16",
        schedule="interleaved 1F1B", interleave=2, framework="megatron",
    )  # fmt: skip
    s = one.strategy
    assert (s.data, s.tensor, s.pipeline, s.microbatches, s.interleave) == (8, 2, 4, 4, 2)
    assert (s.zero, s.recompute, s.precision, s.mixed, s.cut) == (1, "full", "bfloat16", True, "layers")
    assert s.bucket_bytes == ONE_BUCKET_BYTES
    assert one.inferred == ()


def test_replicas_are_what_is_left(chosen):
    one = chosen(**GPT, n_devices=64, tp=4, pp=2, global_batch=64, recompute="none", zero_stage=0)[0]
    assert (one.strategy.data, one.strategy.microbatch_samples) == (8, 1)
    assert "data 8" in one.inferred
    assert "microbatch 1 (pipeline)" in one.inferred


def test_one_axis_that_is_not_told(chosen):
    s = chosen(**GPT, n_devices=32, tp=2, dp=4, microbatch=1, global_batch=16, recompute="none", zero_stage=0)[
        0
    ].strategy
    assert (s.data, s.tensor, s.pipeline) == (4, 2, 4)


def test_microbatches_from_the_accumulation_or_by_what_fits(chosen):
    (said,) = chosen(**RESNET, n_devices=8, global_batch=512, schedule="grad_accum 4")
    assert (said.strategy.microbatches, said.strategy.microbatch_samples) == (4, 16)
    tried = chosen(**RESNET, n_devices=8, global_batch=96)
    assert [c.strategy.microbatch_samples for c in tried] == [12, 6, 4, 3, 2, 1]


def test_a_batch_that_nobody_tells(chosen):
    assert chosen(**RESNET, n_devices=8)[0].strategy.batch == 8 * DEFAULT_IMAGES


def test_devices_without_samples_do_not_train(chosen):
    assert (
        chosen(model="3D U-Net", hardware="H100-SXM5-80GB", devices_per_node=8, n_devices=72, global_batch=56)[
            0
        ].strategy.data
        == 56
    )
    rounded = chosen(**RESNET, n_devices=8, global_batch=1001)[0].strategy
    assert (rounded.data, rounded.batch) == (8, 1000)


def test_sharding_and_recomputation_from_the_least_that_fits(chosen):
    tried = [(c.strategy.zero, c.strategy.recompute) for c in chosen(**GPT, n_devices=8, global_batch=8, microbatch=1)]
    assert tried[:4] == [(0, "none"), (1, "none"), (2, "none"), (3, "none")]
    assert tried[-1] == (3, "full")
    nemo = chosen(**GPT, n_devices=8, tp=2, global_batch=8, microbatch=1, framework="nemo NGC 24.09", recompute="none")
    assert [(c.strategy.zero, c.strategy.sequence_parallel) for c in nemo] == [(1, True)]
    jax = chosen(**GPT, n_devices=8, global_batch=8, microbatch=1, framework="jax/maxtext", recompute="full")
    assert [c.strategy.zero for c in jax] == [3]


def test_stages_dealt_round_without_a_number(chosen):
    one = chosen(
        **GPT, n_devices=8, tp=1, pp=2, dp=4, microbatch=1, global_batch=16, schedule="interleaved 1F1B", zero_stage=0
    )[0]
    assert one.strategy.interleave == 2


def test_numbers_that_contradict_each_other(chosen):
    with pytest.raises(PlanError, match="do not divide 12 devices"):
        chosen(**GPT, n_devices=12, tp=8, global_batch=8)
    with pytest.raises(PlanError, match="are not 16 devices"):
        chosen(**GPT, n_devices=16, tp=2, pp=2, dp=2, global_batch=8)

"""Quantities of rows, read off simulations."""

import pytest

from hpdlf.errors import DataError, PlanError
from hpdlf.experiments.published.system_prediction import predict, step_flops, whole_run
from hpdlf.experiments.published.system_runs import KITS_VALIDATION, KITS_WINDOWS, evaluations_of, samples_of
from hpdlf.experiments.published.system_simulation import setting_of

IMAGES = {
    "model": "ResNet-50 v1.5",
    "hardware": "H100-SXM5-80GB",
    "devices_per_node": 8,
    "precision": "mixed",
    "framework": "mxnet",
}
GPT = {
    "model": "GPT",
    "layers": 2,
    "hidden": 256,
    "heads": 4,
    "seq_len": 128,
    "vocab": 1000,
    "hardware": "A100-SXM4-80GB",
}


def test_flops_of_a_step_are_the_papers(case):
    row = case(**{**GPT, "layers": 96, "hidden": 12288, "seq_len": 2048, "vocab": 51200}, recompute="full")
    # 175 billion parameters x 2048 tokens x 8 FLOPs, and some for attention and the head
    assert step_flops(row, 1) == pytest.approx(8 * 174.6e9 * 2048, rel=0.04)
    assert step_flops(case(**GPT, recompute="none"), 4) == pytest.approx(
        0.75 * step_flops(case(**GPT, recompute="full"), 4)
    )
    with pytest.raises(PlanError, match="need layers"):
        step_flops(case(model="GPT"), 1)


def test_a_throughput_counts_what_the_unit_says(case):
    common = {
        **GPT,
        "n_devices": 8,
        "devices_per_node": 8,
        "global_batch": 64,
        "microbatch": 8,
        "recompute": "none",
        "zero_stage": 0,
    }
    sequences = predict(case(**common, measured_quantity="throughput", unit="sequences/s")).value
    tokens = predict(case(**common, measured_quantity="throughput", unit="tokens/s")).value
    each = predict(case(**common, measured_quantity="throughput_per_device", unit="tokens/s/device")).value
    step = predict(case(**common, measured_quantity="iteration_time", unit="s")).value
    assert tokens.value == pytest.approx(128 * sequences.value)
    assert each.value == pytest.approx(tokens.value / 8)
    assert step.value == pytest.approx(64 / sequences.value)
    assert tokens.low < tokens.value < tokens.high
    with pytest.raises(PlanError, match="has none"):
        predict(case(**IMAGES, n_devices=8, measured_quantity="throughput", unit="tokens/s"))


def test_energy_is_power_of_all_nodes_over_the_run(case):
    common = {**IMAGES, "n_devices": 16, "global_batch": 1024, "round": "v4.0", "samples_to_stop": 4e7}
    common |= {"hardware": "H100-SXM5-80GB HGX node, 8 GPUs, 2x Xeon 8462Y+ (immersion cooled)"}
    seconds = predict(case(**common, measured_quantity="time_to_train", unit="s")).value.value
    watts = predict(case(**common, measured_quantity="avg_node_power", unit="W")).value.value
    joules = predict(case(**common, measured_quantity="energy", unit="kWh")).value.value
    assert joules == pytest.approx(2 * watts * seconds)
    assert 3000.0 < watts < 8500.0
    direct = predict(
        case(**common, measured_quantity="avg_node_power", unit="W", note="node-level DC power")
    ).value.value
    assert 0.95 * watts < direct < 0.99 * watts


def test_a_run_needs_its_length(case):
    with pytest.raises(PlanError, match="after how many samples"):
        predict(case(**IMAGES, n_devices=8, global_batch=512, measured_quantity="time_to_train", unit="s"))
    with pytest.raises(DataError, match="in 'years'"):
        predict(case(**IMAGES, n_devices=8, global_batch=512, measured_quantity="time_to_train", unit="years"))


def test_evaluations_are_those_of_the_benchmark(case):
    assert evaluations_of(case(round="v2.1"), "resnet").samples == 50_000
    bert = evaluations_of(case(round="v2.1", global_batch=448), "bert")
    assert bert.every_samples == 150_000
    assert evaluations_of(case(), "resnet") is None
    assert evaluations_of(case(note="90 epochs; includes validation"), "resnet").every_samples == 1_281_167
    lora = evaluations_of(case(round="v4.1", model="Llama-2-70B LoRA"), "llama")
    assert (lora.every_samples, lora.samples) == (384, 173)


def test_nodes_without_samples_evaluate_meanwhile(case):
    row = {
        "model": "3D U-Net",
        "devices_per_node": 8,
        "global_batch": 8,
        "round": "v4.0",
        "precision": "mixed",
        "framework": "mxnet",
    }
    row |= {
        "hardware": "H100-SXM5-80GB",
        "note": "epochs field of the log 3e5",
        "measured_quantity": "time_to_train",
        "unit": "s",
    }

    def phases(n_devices):
        one = case(**row, n_devices=n_devices)
        return {phase.name for phase in whole_run(one, setting_of(one)).phases}

    assert "evaluation" in phases(8)
    assert "evaluation" not in phases(16)
    assert evaluations_of(case(round="v4.0"), "u-net 3d").samples == KITS_VALIDATION * KITS_WINDOWS


def test_samples_of_a_run(case):
    network = setting_of(
        case(**GPT, devices_per_node=8, global_batch=8, measured_quantity="iteration_time", unit="s")
    ).network
    assert samples_of(case(samples_to_stop=5.0), network) == 5.0
    assert samples_of(case(note="epochs field of the log 4.14e+05"), network) == 4.14e5
    assert samples_of(case(note="366B tokens"), network) == pytest.approx(366e9 / 128)
    assert samples_of(case(), network) is None

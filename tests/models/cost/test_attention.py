"""Fused attention: closed forms of its seconds, and how they grow."""

from __future__ import annotations

import pytest

from hpdlf.hwprofiles import load_device
from hpdlf.models.cost.attention import LAST, ROWS, attention_seconds, newest, share_of_peak
from hpdlf.models.cost.operation import Operation
from hpdlf.models.cost.traits import traits_of

A100, H100, MI300X = (load_device(name) for name in ("A100-SXM-80", "H100-SXM", "MI300X"))


def attention(*, samples: int, heads: int, tokens: int, phase: str = "forward", causal: bool = True) -> Operation:
    width = heads * 128
    flops = 4.0 * samples * tokens**2 * width * (0.5 if causal else 1.0) * (2.5 if phase != "forward" else 1.0)
    return Operation(
        family="attention", op="attention", dims=(samples, tokens, tokens, width), flops=flops, phase=phase,
        read_bytes=6.0 * samples * tokens * width, write_bytes=2.0 * samples * tokens * width, precision="bfloat16",
        item_bytes=2,
    )  # fmt: skip


def seconds(operation: Operation, device=A100, generation=None) -> float:
    return attention_seconds(operation, device, traits_of(device, "bfloat16"), generation)


def test_long_sequences_go_at_the_share_of_the_peak():
    asked = attention(samples=4, heads=32, tokens=65536)
    assert seconds(asked) == pytest.approx(asked.flops / (312e12 * share_of_peak(A100, 2, backward=False)), rel=0.02)


def test_units_wait_for_the_last_block():
    one, two = (seconds(attention(samples=1, heads=heads, tokens=4096)) for heads in (16, 32))
    rate = 312e12 * share_of_peak(A100, 2, backward=False)
    last_s = 2 * one - two  # what does not grow with the heads
    assert last_s == pytest.approx(LAST * 4 * ROWS * 4096 * 128 / (rate / 108), rel=1e-6)


def test_a_causal_mask_nearly_halves_the_time():
    whole, half = (seconds(attention(samples=8, heads=32, tokens=8192, causal=c)) for c in (False, True))
    assert half == pytest.approx(whole / 2, rel=0.05)


def test_backward_takes_more_than_the_products_say():
    forward, backward = (
        seconds(attention(samples=8, heads=32, tokens=8192, phase=phase)) for phase in ("forward", "backward_input")
    )
    assert 2.5 * forward < backward < 4 * forward


@pytest.mark.parametrize("device", [A100, H100, MI300X], ids=lambda d: d.name)
def test_newer_kernels_are_no_slower(device):
    asked = attention(samples=2, heads=32, tokens=4096)
    times = [seconds(asked, device, generation) for generation in (1, 2, 3)]
    assert times[0] > times[1] >= times[2]
    assert seconds(asked, device) == times[2]


def test_asynchronous_kernels_need_hopper():
    assert (newest(A100), newest(H100)) == (2, 3)


def test_few_rows_are_bound_by_their_traffic():
    asked = attention(samples=4096, heads=16, tokens=16, causal=False)
    assert seconds(asked) >= asked.traffic_bytes / 2039e9

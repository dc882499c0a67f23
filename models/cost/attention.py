"""Seconds of fused attention on an accelerator: its arithmetic at the share of the nominal peak that its kernels reach.

Fused kernels keep the scores on the chip, so traffic hardly counts; how near to the peak they come is a matter of their generation:
the first (Dao et al. 2022, arXiv 2205.14135) works tile by tile in one block a head, the second (Dao 2023, arXiv 2307.08691) shares
the rows of a head among blocks, the third (Shah et al. 2024, arXiv 2407.08608, and vendors' libraries) overlaps products and softmax
with the asynchronous units of Hopper and later. Causal masks count half. The shares for A100 and B200 are the means of measured
kernels (heads 128 wide, 4,096 tokens); those for other devices and generations are what the papers report. Kernels need enough rows to
fill all units, and short sequences lose at their ends.

>>> from hpdlf.hwprofiles import load_device
>>> a100, h100 = load_device("A100-SXM-80"), load_device("H100-SXM")
>>> share_of_peak(a100, 2, backward=False) > share_of_peak(a100, 1, backward=False)
True
>>> share_of_peak(h100, 3, backward=False) > share_of_peak(h100, 2, backward=False)
True
"""

from __future__ import annotations

from math import ceil

from ...hwprofiles import Device
from .operation import Operation
from .traits import GENERATION, Traits

__all__ = ["SPREAD", "attention_seconds", "newest", "share_of_peak"]

# Shares of the nominal peak, forward and backward, by generation of the kernels: of devices up to Ampere, and from Hopper on.
_AMPERE = {1: (0.36, 0.30), 2: (0.54, 0.44), 3: (0.54, 0.44)}
_HOPPER = {1: (0.20, 0.17), 2: (0.36, 0.31), 3: (0.58, 0.48)}
_BLACKWELL = {1: (0.12, 0.10), 2: (0.22, 0.19), 3: (0.44, 0.40)}
_OTHER = {1: (0.20, 0.15), 2: (0.34, 0.25), 3: (0.38, 0.30)}  # matrix engines of other makers
ROWS = 128  # of queries that a block works on
LOST_ROWS = 128.0  # of a sequence: masks cut tiles, and pipelines fill and drain
SPREAD = 0.15


def newest(device: Device) -> int:
    """The newest generation of kernels that runs on a device."""
    return 3 if device.vendor != "nvidia" or GENERATION.get(device.architecture, 0.0) >= 9.0 else 2


def share_of_peak(device: Device, generation: int, *, backward: bool) -> float:
    """The share of a device's nominal peak that long sequences reach."""
    age = GENERATION.get(device.architecture, 0.0)
    if device.vendor != "nvidia":
        table = _OTHER
    else:
        table = _BLACKWELL if age >= 10.0 else _HOPPER if age >= 9.0 else _AMPERE
    return table[min(generation, newest(device))][1 if backward else 0]


def attention_seconds(operation: Operation, device: Device, traits: Traits, generation: int | None = None) -> float:
    """Seconds of one attention, without its call. `generation`: of the kernels; None: the newest that the device runs."""
    batch, queries, _, width = operation.dims
    share = share_of_peak(device, generation or newest(device), backward=operation.phase.startswith("backward"))
    blocks = batch * max(width // ROWS, 1) * ceil(queries / ROWS)
    waves = ceil(blocks / traits.units)
    filled = blocks / (waves * traits.units) if blocks < 4 * traits.units else 1.0
    arithmetic_s = operation.flops / (traits.peak_flops_per_s * share * filled) * (1.0 + LOST_ROWS / max(queries, 1))
    return max(arithmetic_s, operation.traffic_bytes / traits.bandwidth_bytes_per_s)

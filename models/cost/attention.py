"""Seconds of fused attention on an accelerator: its arithmetic at the share of the nominal peak that its kernels reach.

Fused kernels keep the scores on the chip, so traffic hardly counts; how near to the peak they come is a matter of their generation:
the first (Dao et al. 2022, arXiv 2205.14135), the second, whose blocks share the rows of a head better (Dao 2023, arXiv 2307.08691), the
third, which overlaps products and softmax with the asynchronous units of Hopper and later (Shah et al. 2024, arXiv 2407.08608, and
vendors' libraries). Causal masks count half.

``seconds = flops / rate + last * (one block's flops) / (rate / units)``: blocks of rows are dealt to the units, and at the end units
wait for the last one, which under a causal mask sees all keys. Rates and the share `last` are those of measured kernels on A100 and
B200 (SimuMax's; 4 to 128 heads, 4,096 to 131,072 tokens: median error 6 % forward, 7 and 18 % backward); rates of other devices and
generations are what the papers report for long sequences.

>>> from hpdlf.hwprofiles import load_device
>>> a100, h100 = load_device("A100-SXM-80"), load_device("H100-SXM")
>>> share_of_peak(a100, 2, backward=False) > share_of_peak(a100, 1, backward=False)
True
>>> share_of_peak(h100, 3, backward=False) > share_of_peak(h100, 2, backward=False)
True
"""

from __future__ import annotations

from ...hwprofiles import Device
from .operation import Operation
from .traits import GENERATION, Traits

__all__ = ["SPREAD", "attention_seconds", "newest", "share_of_peak"]

# Shares of the nominal peak, forward and backward, by generation of the kernels: of devices up to Ampere, and from Hopper on.
_AMPERE = {1: (0.36, 0.30), 2: (0.63, 0.52), 3: (0.63, 0.52)}
_HOPPER = {1: (0.20, 0.17), 2: (0.37, 0.32), 3: (0.64, 0.54)}
_BLACKWELL = {1: (0.12, 0.10), 2: (0.22, 0.19), 3: (0.54, 0.42)}
_OTHER = {1: (0.20, 0.15), 2: (0.34, 0.25), 3: (0.38, 0.30)}  # matrix engines of other makers
HEAD = 128  # elements of a head, where a result is at least as wide
# Rows that a block works on up to Ampere and from Hopper on, and how much of the last block's time others wait for it.
ROWS, LATER_ROWS = 128, 256
LAST, LAST_BACKWARD = 0.85, 0.3
BACKWARD = 2.5  # products of the backward pass over those of the forward pass
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
    _, _, keys, width = operation.dims
    backward = operation.phase.startswith("backward")
    rate = traits.peak_flops_per_s * share_of_peak(device, generation or newest(device), backward=backward)
    rows = LATER_ROWS if GENERATION.get(device.architecture, 0.0) >= 9.0 else ROWS
    block_flops = 4.0 * rows * keys * min(width, HEAD) * (BACKWARD if backward else 1.0)
    last_s = (LAST_BACKWARD if backward else LAST) * min(block_flops, operation.flops) * traits.units / rate
    return max(operation.flops / rate + last_s, operation.traffic_bytes / traits.bandwidth_bytes_per_s)

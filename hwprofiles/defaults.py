"""What is assumed of a device whose datasheet does not say it: values by kind of device, each marked as modelled.

No datasheet has the cost of a launch or the share of communication that hides behind computing, and no prediction can
do without them. So that a new device works from its datasheet alone, its file may leave them out; what stands in for
them carries a range, the tier "modelled" and the reason. A measurement in the file takes their place.

>>> DEFAULTS["gpu"]["launch_overhead_s"].value, DEFAULTS["gpu"]["launch_overhead_s"].tier
(5e-06, 'modelled')
"""

from __future__ import annotations

from .profile import Quantity

__all__ = ["DEFAULTS"]


def _launch(value_s: float, low_s: float, high_s: float, why: str) -> Quantity:
    source = f"assumed of every such device: {why}"
    return Quantity(value=value_s, low=low_s, high=high_s, unit="s", source=source, tier="modelled")


def _overlap(value: float, low: float, why: str) -> Quantity:
    source = f"assumed of every such device: {why}"
    return Quantity(value=value, low=low, high=1.0, unit="1", source=source, tier="modelled")


_LAUNCH = (
    "time between small kernels in one stream, 2 to 10 us in published measurements; "
    "an eager PyTorch call shows 24 to 31 us (sitar-lab/NeuSight)"
)
_ADAPTERS = "adapters and copy engines move the data while the units compute; contention for memory is not counted"

DEFAULTS: dict[str, dict[str, Quantity]] = {
    "gpu": {
        "launch_overhead_s": _launch(5e-6, 2e-6, 31e-6, _LAUNCH),
        "communication_overlap": _overlap(1.0, 0.5, _ADAPTERS),
    },
    "accelerator": {
        "launch_overhead_s": _launch(
            5e-6, 1e-6, 50e-6, "the program is compiled whole and started once; taken to be that of a GPU's kernel"
        ),
        "communication_overlap": _overlap(1.0, 0.5, _ADAPTERS),
    },
    "cpu": {
        "launch_overhead_s": _launch(
            10e-6, 3e-6, 30e-6, "starting and joining the threads of a socket for one operator"
        ),
        "communication_overlap": _overlap(
            0.5, 0.0, "the adapter moves the data, cores of the same socket add up the gradients"
        ),
    },
}

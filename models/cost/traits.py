"""What regressions see of a device: rates that it sustains, sizes of its caches and units, and which generation it is.

**Sustained arithmetic.** A card whose power limit is small beside its peak lowers its clock until it keeps the limit:
a T4 (70 W) does matrix products at 0.48 of its nominal 8.1 TFLOP/s, an A100 of 250 W at 0.84 and the same chip at
300 W at 0.93. What a watt buys is a property of the silicon's generation (:data:`FLOPS_PER_J`), so

``sustained = peak * min(ATTAINABLE, FLOPS_PER_J * limit / peak_float32)``

at the device's own limit (what a lower one that is set does is :func:`hpdlf.models.cost.power.slowdown_at`'s to say). Where
the profile says what the best matrix product achieved at a precision, that is the sustained rate. Matrix units of recent
silicon draw more than the limit allows at nominal clocks, so that their best products stay well below the nominal peak: there the
share is that of the chip's measured relatives (:data:`MATRIX_SHARE`).

**Sustained bandwidth.** Streams get a share of the nominal bandwidth that depends on the kind of memory
(:data:`BANDWIDTH_SHARE`): graphics memory spends some of it on error correction, early stacked memory on its controllers.

**Generation** orders architectures by age within a vendor's line, so that a tree's threshold puts a device that was
never measured beside its closest relatives: Hopper falls in with Ampere where nothing newer was measured, the second
CDNA with the first.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from ...hwprofiles import Device
from .operation import HALF_PRECISIONS
from .roofline import roof_of

__all__ = [
    "ATTAINABLE",
    "BANDWIDTH_SHARE",
    "FLOPS_PER_J",
    "GENERATION",
    "MATRIX_SHARE",
    "Traits",
    "bandwidth_share",
    "matrix_share",
    "sustained_share",
    "traits_of",
]

# The best share of the nominal peak that large matrix products reach where power does not bind: the 90th percentile
# over products of more than a millisecond on V100, A100 (80 GB) and P100 is 0.88 to 0.96 (NeuSight's measurements).
ATTAINABLE = 0.93
# float32 arithmetic per joule of the power limit, matrix products. Turing and Ampere from a T4 and an A100 of 40 GB,
# whose limits bind, Pascal from a P4, CDNA from MI100 and MI250 (NeuSight's measurements). Maxwell and Kepler by the
# vendors' ratios of peak to power; those since by the trend, 1.2 a generation for large dies and twice that for cards
# run at low voltage.
FLOPS_PER_J: dict[str, float] = {
    "kepler": 20e9,
    "maxwell": 32e9,
    "pascal": 53e9,
    "volta": 56e9,
    "turing": 56e9,
    "ampere": 66e9,
    "ada": 140e9,
    "hopper": 80e9,
    "blackwell": 90e9,
    "gcn5": 40e9,
    "cdna1": 110e9,
    "cdna2": 130e9,
    "cdna3": 180e9,
    "cdna4": 190e9,
}
# Large element-wise operators (NeuSight's measurements): 0.75 to 0.77 on P4 and T4; 0.76 on P100 and 0.80 on MI100;
# 0.87 to 0.92 on V100 and A100. The rest by likeness.
BANDWIDTH_SHARE: dict[str, float] = {"gddr": 0.76, "hbm": 0.89, "ddr": 0.8, "": 0.8}
# The best products of matrix units over the nominal peak, at 16 bits (and tf32) and at 8, where the power limit does not bind more:
# A100, H100 and B200 (stas00/ml-engineering, "Maximum Achievable Matmul FLOPS"), MI300X ("Measuring Max-Achievable FLOPs", ROCm
# blogs 2025, where MI325X reaches 0.645 and 0.58 at 1,000 W). The fourth CDNA by the third at that limit.
MATRIX_SHARE: dict[str, tuple[float, float]] = {
    "ampere": (0.87, 0.87),
    "hopper": (0.80, 0.71),
    "blackwell": (0.776, 0.763),
    "cdna3": (0.54, 0.49),
    "cdna4": (0.645, 0.58),
}
EARLY_BANDWIDTH_SHARE = 0.79
EARLY_STACKED = frozenset({"pascal", "gcn5", "cdna1", "cdna2"})
GENERATION: dict[str, float] = {
    "knights-landing": -20.0,
    "gcn5": -5.0,
    "cdna1": -3.0,
    "cdna2": -2.8,
    "cdna3": -2.6,
    "cdna4": -2.4,
    "kepler": 3.5,
    "maxwell": 5.2,
    "pascal": 6.1,
    "volta": 7.0,
    "turing": 7.5,
    "ampere": 8.0,
    "ada": 8.9,
    "hopper": 9.0,
    "blackwell": 10.0,
}
# Devices of no line above (tensor processors, Gaudi) are taken to be like this one.
_LIKE = 8.0
_L2_BYTES = 4e6


@dataclass(frozen=True, slots=True)
class Traits:
    """A device at one precision, in SI units; `limit_w` None where the profile has none."""

    matrix_flops_per_s: float
    vector_flops_per_s: float
    peak_flops_per_s: float
    bandwidth_bytes_per_s: float
    units: float
    l2_bytes: float
    launch_s: float
    generation: float


def matrix_share(device: Device, precision: str) -> float:
    """The share of its nominal peak that `device` sustains in large products of its matrix units in `precision`."""
    share = sustained_share(device)
    measured = MATRIX_SHARE.get(device.architecture)
    if measured is None or precision not in HALF_PRECISIONS:
        return share
    return min(share, measured[1 if precision == "float8" else 0])


def sustained_share(device: Device) -> float:
    """The share of its nominal peak that `device` sustains in large matrix products at its own power limit."""
    per_joule = FLOPS_PER_J.get(device.architecture)
    wide = device.vector_flops_per_s.get("float32") or device.peak_flops_per_s.get("float32")
    if device.vendor == "amd":
        wide = device.peak_flops_per_s.get("float32") or wide
    if device.limit_w is None or per_joule is None or wide is None:
        return ATTAINABLE
    return min(ATTAINABLE, per_joule * device.limit_w.value / wide.value)


def bandwidth_share(device: Device) -> float:
    """The share of its nominal bandwidth that `device` gives to long streams."""
    if device.memory_kind == "hbm" and device.architecture in EARLY_STACKED:
        return EARLY_BANDWIDTH_SHARE
    return BANDWIDTH_SHARE[device.memory_kind]


@lru_cache(maxsize=4096)
def _traits(device: _ByIdentity, precision: str) -> Traits:
    return _make(device.device, precision)


@dataclass(frozen=True, slots=True, eq=False)
class _ByIdentity:
    """A device that can stand in a key: equal to itself alone."""

    device: Device

    def __hash__(self) -> int:
        return id(self.device)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByIdentity) and other.device is self.device


def traits_of(device: Device, precision: str = "float32") -> Traits:
    """What regressions see of `device` at `precision`.

    Raises:
        ProfileError: the profile has no peak for the precision.
    """
    return _traits(_ByIdentity(device), precision)


def _make(device: Device, precision: str) -> Traits:
    roof = roof_of(device, precision)
    share = sustained_share(device)
    default = GENERATION["knights-landing"] if device.kind == "cpu" else _LIKE
    achieved = device.achieved_flops_per_s.get(precision)
    return Traits(
        matrix_flops_per_s=achieved.value if achieved else roof.matrix_flops_per_s * matrix_share(device, precision),
        vector_flops_per_s=roof.vector_flops_per_s * share,
        peak_flops_per_s=roof.matrix_flops_per_s,
        bandwidth_bytes_per_s=roof.bandwidth_bytes_per_s * bandwidth_share(device),
        units=device.compute_units.value if device.compute_units else 64.0,
        l2_bytes=device.l2_cache_bytes.value if device.l2_cache_bytes else _L2_BYTES,
        launch_s=roof.launch_s,
        generation=GENERATION.get(device.architecture, default),
    )

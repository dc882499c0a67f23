"""The roofline: no operator runs faster than its arithmetic at the device's peak or its traffic at the memory's
bandwidth.

Williams, Waterman, Patterson, "Roofline: an insightful visual performance model", CACM 52(4), 2009:
``seconds >= max(flops / peak, bytes / bandwidth)``. To that comes the time that a launch costs before any work is done.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches

from ...errors import ProfileError
from ...hwprofiles import PRECISIONS, Device
from ..onnxpp.count import Phase, work
from ..onnxpp.graph import Graph, Operator
from .estimate import Bound, Estimate

__all__ = ["Roof", "operator_roofline", "roof_of", "storage"]

# Families that matrix units serve; the others run at the vector peak.
MATRIX_FAMILIES = frozenset({"matmul", "conv", "rnn", "attention"})
# Where a device has no peak of its own for a precision, the arithmetic runs at one of these: the 16-bit types share
# their units, and a type that no unit knows is widened first.
_RUNS_AS = {
    "float8": ("bfloat16", "float16", "float32"),
    "bfloat16": ("float16", "float32"),
    "float16": ("bfloat16", "float32"),
    "tf32": ("float32",),
}


def storage(precision: str) -> str:
    """The dtype that tensors have in memory: tf32 rounds in the matrix unit only, float8 is what products cast to."""
    return {"tf32": "float32", "float8": "bfloat16"}.get(precision, precision)


@dataclass(frozen=True, slots=True)
class Roof:
    """The peaks of a device at one precision."""

    matrix_flops_per_s: float
    vector_flops_per_s: float
    bandwidth_bytes_per_s: float
    launch_s: float

    def times(self, family: str, flops: float, nbytes: float) -> tuple[float, float]:
        """Seconds of the arithmetic and of the memory traffic, each alone."""
        peak = self.matrix_flops_per_s if family in MATRIX_FAMILIES else self.vector_flops_per_s
        return flops / peak, nbytes / self.bandwidth_bytes_per_s


def roof_of(device: Device, precision: str) -> Roof:
    """The peaks that computing in `precision` meets on `device`.

    A 16-bit precision without a peak of its own takes that of the other 16-bit type, and what no unit computes
    natively is widened
    to float32. Vector work takes the vector peak where the profile has it, else the peak for float32 (float64 for
    float64): matrix units do no element-wise work.

    Raises:
        ProfileError: the precision does not exist, or the profile has no peak for it.
    """
    peaks = device.peak_flops_per_s
    if precision not in PRECISIONS:
        close = get_close_matches(precision, PRECISIONS, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"known are {', '.join(PRECISIONS)}."
        raise ProfileError(f"precision '{precision}' is not known; {hint}")
    found = next((p for p in (precision, *_RUNS_AS.get(precision, ())) if p in peaks), None)
    if found is None:
        raise ProfileError(
            f"device '{device.name}': the profile has no peak_flops for {precision} (it has {', '.join(peaks)}). "
            f"Add peak_flops.{precision} to the device's profile, or choose one of those precisions."
        )
    wide = "float64" if precision == "float64" else "float32"
    vector = device.vector_flops_per_s.get(wide) or peaks.get(wide) or peaks[found]
    return Roof(
        matrix_flops_per_s=peaks[found].value,
        vector_flops_per_s=vector.value,
        bandwidth_bytes_per_s=device.memory_bandwidth_bytes_per_s.value,
        launch_s=device.launch_overhead_s.value,
    )


def operator_roofline(
    operator: Operator, graph: Graph, *, batch: int, phase: Phase, device: Device, precision: str = "float32"
) -> Estimate:
    """The least time that `operator` can take alone, launch included: a bound, no prediction, so its interval has no
    width.
    """
    roof = roof_of(device, precision)
    done = work(operator, graph, batch=batch, phase=phase, precision=storage(precision))
    compute_s, memory_s = roof.times(operator.family, done.flops, done.read_bytes + done.write_bytes)
    seconds = max(compute_s, memory_s) + roof.launch_s
    return Estimate(
        seconds=seconds,
        low_s=seconds,
        high_s=seconds,
        provenance="modelled",
        bound=dominant(compute_s=compute_s, memory_s=memory_s, launch_s=roof.launch_s),
    )


def dominant(*, compute_s: float, memory_s: float, launch_s: float) -> Bound:
    """What takes the most time."""
    if launch_s > max(compute_s, memory_s):
        return "launch"
    return "compute" if compute_s >= memory_s else "memory"

"""What a collective takes from the computing of its devices while it runs, and what computing takes from it.

A GPU's library moves data by kernels of its own: NCCL occupies as few compute units as the speed asks for, 2 where one adapter
gives 12 to 24 GB/s, 16 of a DGX A100's 108 for 190 GB/s, and shares them with nobody; every byte that passes a device is stored
to memory and read again, and often added to a third (the maintainers in NVIDIA/nccl, issues 689 and 1428). So computing
loses

* the units: rate / 12 GB/s over the device's units, of what is bound by arithmetic;
* memory: 2.5 times the rate over the memory's bandwidth, of what is bound by memory,

and of a training step about a quarter of the time is bound by memory. That is a fifth on 4 or 8 A100 and H100 over NVLink, where
Lee et al. (arXiv:2507.03114, 2025) measured computing to be 19 % slower on average beneath communication and 40 % at most;
and 2 % where eight groups share a node's adapters. AMD's units move about half as much each. A TPU's links have engines of
their own, so that only memory is shared.

Where the computing cores themselves have to move the data, the device's `communication_overlap` says what is left.

>>> from hpdlf.hwprofiles import load_cluster
>>> dgx = load_cluster("dgx-a100:8")
>>> round(interference("all_gather", 1e9, tuple(range(8)), dgx), 2)
0.22
>>> round(interference("all_reduce", 1e9, tuple(range(0, 64, 8)), dgx), 2)
0.02
"""

from __future__ import annotations

from collections.abc import Mapping

from ...hwprofiles import Cluster
from .algorithms import moved_bytes
from .collectives import collective_legs

__all__ = ["interference"]

# Bytes per second that one compute unit moves: 190 GB/s by 16 units of NVIDIA (see above); of AMD about 310 GB/s by 56
# (RCCL's channels on MI300X, recalled).
UNIT_BYTES_PER_S: Mapping[str, float] = {"nvidia": 12e9, "amd": 5.5e9}
# Reads and writes of memory per byte that passes a device: 2 to 3.
TRAFFIC = 2.5
# The part of a training step's computing that memory bounds: normalisations, activations, sums, the optimiser.
MEMORY_BOUND = 0.25
# Some computing always goes on.
MOST = 0.9


def interference(
    kind: str, nbytes: float, ranks: tuple[int, ...], cluster: Cluster, *, active: int | None = None
) -> float:
    """The share, 0 to 1, of a device's computing that a collective takes while it runs, beside what it makes wait.

    The collective pays as much: computing holds its kernels' memory accesses up. Arguments as of :func:`collective_legs`.

    Raises:
        PlanError: no such collective, a rank outside the cluster or named twice.
    """
    device, exposed = cluster.device, 1.0 - cluster.device.communication_overlap.value
    legs = collective_legs(kind, nbytes, ranks, cluster, active=active)
    taken_s = sum(leg.latency_s + leg.transmission_s for leg in legs)
    if not legs or nbytes <= 0 or taken_s <= 0:
        return 0.0
    if device.kind == "cpu":
        return exposed
    # Where the switch adds up, a device sends and receives the buffer once.
    moved = nbytes if legs[0].algorithm == "NVLS" else moved_bytes(kind, nbytes, len(ranks))
    rate_bytes_per_s = moved / taken_s
    memory = min(1.0, TRAFFIC * rate_bytes_per_s / device.memory_bandwidth_bytes_per_s.value)
    units = 0.0
    if device.kind == "gpu" and device.compute_units is not None:
        each = UNIT_BYTES_PER_S.get(device.vendor, UNIT_BYTES_PER_S["nvidia"])
        units = min(1.0, rate_bytes_per_s / each / device.compute_units.value)
    share = (1.0 - MEMORY_BOUND) * units + MEMORY_BOUND * memory
    return min(MOST, max(exposed, share)) if exposed < 1.0 else 1.0

"""Which cores there are for this process, and which of them a rank computes on: as many as its device has, as the plan says.

mpiexec binds ranks of one core. A rank of several (``generic-x86:1x1x4``, a socket) takes a run of neighbours among the cores of its
host, the first of each physical core before its second thread, by its place among the host's ranks.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..hwprofiles import Cluster

__all__ = ["THREADS", "allowed_cpus", "bind_rank", "cores_of_rank", "share_of_cores", "usable_cores"]

SYSTEM_CPUS = Path("/sys/devices/system/cpu")

THREADS = "HPDLF_THREADS"
"""The variable by which the launcher tells ranks how many cores each is to use, where it is more than one."""

LOCAL_RANK = ("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "MV2_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID")


def allowed_cpus() -> list[int]:
    """The logical CPUs that this process may use; XLA makes a thread for each."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def usable_cores(root: Path = SYSTEM_CPUS) -> list[int]:
    """One logical CPU per physical core that this process may use."""
    cores: dict[str, int] = {}
    for cpu in allowed_cpus():
        try:
            siblings = (root / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text().strip()
        except OSError:
            siblings = str(cpu)
        cores.setdefault(siblings, cpu)
    return sorted(cores.values())


def cores_of_rank(cluster: Cluster, ranks: int, *, available: int) -> tuple[int, int]:
    """(cores that each of a plan's ranks is to use on a host with `available` ones, cores that its device has).

    They differ where the host is smaller than the node that the plan was made for. A rank with a GPU has one core.

    >>> from hpdlf.hwprofiles import load_cluster
    >>> cores_of_rank(load_cluster("generic-x86:1x2x4"), 2, available=6)
    (3, 4)
    """
    device = cluster.device
    wanted = int(device.compute_units.value) if device.kind == "cpu" and device.compute_units else 1
    here = min(ranks, cluster.devices_per_node)
    return max(1, min(wanted, available // here)), wanted


def share_of_cores(cores: Sequence[int], threads: int, place: int) -> list[int]:
    """The cores of rank number `place` of a host, where each has `threads`; all where there are not so many.

    >>> share_of_cores([0, 1, 2, 3], 2, 1), share_of_cores([0, 1, 2], 2, 1)
    ([2, 3], [0, 1, 2])
    """
    mine = list(cores[place * threads : (place + 1) * threads])
    return mine if len(mine) == threads else list(cores)


def bind_rank(environment: Mapping[str, str] | None = None) -> None:
    """Bind this process as the launcher says, before XLA makes its threads: one for each core that it may use."""
    env = os.environ if environment is None else environment
    place = next((env[name] for name in LOCAL_RANK if env.get(name, "").isdigit()), None)
    if not env.get(THREADS, "").isdigit() or place is None or not hasattr(os, "sched_setaffinity"):
        return
    first = usable_cores()
    cores = [*first, *(cpu for cpu in allowed_cpus() if cpu not in first)]
    os.sched_setaffinity(0, share_of_cores(cores, int(env[THREADS]), int(place)))

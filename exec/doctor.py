"""`hpdlf doctor`: what is installed, what works, and how to mend what does not.

What could hang or spoil this process (MPI starts when it is imported, JAX claims devices) is asked in a process of its
own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import HpdlfError
from ..hwprofiles import load_cluster, user_folder
from .energy_meters import find_nvml_meters, find_rapl_meters
from .environment import compilation_cache, examine_machine, package_versions, rank_environment
from .mpi import find_mpiexec

__all__ = ["Finding", "examine"]

PROBE_S = 60
_MPI = """
import json, mpi4py
mpi4py.rc.finalize = True
from mpi4py import MPI
levels = {getattr(MPI, "THREAD_" + level.upper()): level for level in ("single", "funneled", "serialized", "multiple")}
print(json.dumps({"library": MPI.Get_library_version().split(",")[0].split("\\n")[0].strip(), "standard":
MPI.Get_version(),
                  "threads": levels[MPI.Query_thread()]}))
"""
_JAX = """
import json, jax
print(json.dumps([d.platform if d.platform == d.device_kind else f"{d.platform} {d.device_kind}" for d in
jax.devices()]))
"""
_BINDING = "import os; print(len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else 0)"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing looked at. `mend` is a command or a sentence; empty where nothing needs mending."""

    name: str
    status: Literal["ok", "warn", "missing"]
    value: str
    mend: str = ""

    def as_dict(self) -> dict[str, str]:
        """As plain values."""
        return asdict(self)


def examine() -> list[Finding]:
    """Everything, in the order in which things depend on each other. Takes some seconds; changes nothing."""
    findings: list[Finding] = []
    for look in (
        _python,
        _packages,
        _machine,
        _cores,
        _mpi_library,
        _mpiexec,
        _jax,
        _energy,
        _allocator,
        _profile,
        _observations,
        _shared_memory,
        _batch_system,
    ):
        findings += look()
    return findings


def _python() -> list[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    return [Finding(name="Python", status="ok", value=f"{version} ({sys.executable})")]


def _packages() -> list[Finding]:
    needed = (
        "jax",
        "jaxlib",
        "numpy",
        "optax",
        "mpi4py",
        "onnx",
        "onnx-ir",
        "safetensors",
        "simpy",
        "duckdb",
        "scikit-learn",
        "pydantic",
    )
    found = package_versions(needed)
    lacking = [p for p in needed if p not in found]
    own = package_versions(("hpdlf",)).get("hpdlf", "not installed")
    listed = ", ".join(f"{name} {version}" for name, version in found.items() if name != "python")
    finding = Finding(name="Packages", status="ok", value=f"hpdlf {own}; {listed}")
    if lacking:
        return [
            finding,
            Finding(
                name="Packages", status="missing", value=", ".join(lacking), mend=f"pip install {' '.join(lacking)}"
            ),
        ]
    return [finding]


def _machine() -> list[Finding]:
    machine = examine_machine()
    memory = f", {machine.memory_bytes / 2**30:.0f} GiB" if machine.memory_bytes else ""
    return [Finding(name="Machine", status="ok", value=f"{machine.name}: {machine.cpu}{memory}, {machine.system}")]


def _cores() -> list[Finding]:
    machine = examine_machine()
    value = f"{machine.allowed_cpus} of {machine.cpus} logical CPUs may be used"
    if machine.allowed_cpus < machine.cpus:
        mend = "A batch system, a container or taskset limits this process: ask it for more, or start elsewhere."
        return [Finding(name="Cores", status="warn", value=value, mend=mend)]
    return [Finding(name="Cores", status="ok", value=value)]


def _probe(command: list[str]) -> tuple[str, str]:
    """(output, "") of a command, or ("", why it failed)."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_S, env=rank_environment())
    except subprocess.TimeoutExpired:
        return "", f"no answer within {PROBE_S} s"
    except OSError as error:
        return "", str(error)
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).strip().splitlines() if line.strip("- ")]
        return "", lines[-1] if lines else f"exit code {done.returncode}"
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else "", ""


def _mpi_library() -> list[Finding]:
    out, why = _probe([sys.executable, "-c", _MPI])
    rebuild = "pip install --no-binary mpi4py --force-reinstall mpi4py"
    install = f"`pip install 'hpdlf[mpi]'`, or load the centre's MPI module and `{rebuild}`."
    if why:
        return [Finding(name="MPI library", status="missing", value=why, mend=install)]
    found: dict[str, Any] = json.loads(out)
    library = Finding(
        name="MPI library", status="ok", value=f"{found['library']} (MPI {'.'.join(map(str, found['standard']))})"
    )
    if found["threads"] != "multiple":
        mend = "Streams of a rank communicate from several threads: use an MPI built with MPI_THREAD_MULTIPLE."
        return [library, Finding(name="MPI threads", status="warn", value=found["threads"], mend=mend)]
    return [library, Finding(name="MPI threads", status="ok", value="multiple")]


def _mpiexec() -> list[Finding]:
    try:
        mpiexec = find_mpiexec()
    except HpdlfError as error:
        return [Finding(name="mpiexec", status="missing", value="none that runs", mend=str(error))]
    found = Finding(name="mpiexec", status="ok", value=f"{mpiexec.flavour} {mpiexec.version} ({mpiexec.path})")
    cpus = examine_machine().allowed_cpus
    out, why = _probe([*mpiexec.command(1, cpus=cpus), sys.executable, "-c", _BINDING])
    if why:
        return [
            found,
            Finding(name="Binding", status="missing", value=why, mend=f"Try `{mpiexec.path} -n 1 hostname` by hand."),
        ]
    if out.isdigit() and int(out) > 2 and int(out) == cpus:
        mend = "Allow binding, or ranks disturb each other (a container: --cap-add SYS_NICE; Slurm: --cpu-bind)."
        return [found, Finding(name="Binding", status="warn", value=f"a rank may use all {cpus} CPUs", mend=mend)]
    return [found, Finding(name="Binding", status="ok", value=f"a rank gets {out} of {cpus} CPUs")]


def _jax() -> list[Finding]:
    out, why = _probe([sys.executable, "-c", _JAX])
    if why:
        return [Finding(name="JAX devices", status="missing", value=why, mend="pip install --upgrade jax jaxlib")]
    devices: list[str] = json.loads(out)
    counted = ", ".join(f"{devices.count(d)} x {d}" for d in dict.fromkeys(devices))
    if shutil.which("nvidia-smi") and not any(d.startswith(("gpu", "cuda")) for d in devices):
        mend = "There are NVIDIA tools on this host: `pip install 'jax[cuda12]'` lets JAX use the GPUs."
        return [Finding(name="JAX devices", status="warn", value=counted, mend=mend)]
    cache = compilation_cache()
    return [
        Finding(name="JAX devices", status="ok", value=counted),
        Finding(
            name="Compiled code", status="ok", value=f"kept in {cache}{'' if cache.is_dir() else ' (empty so far)'}"
        ),
    ]


def _energy() -> list[Finding]:
    findings = []
    mends = {
        "CPU energy": "Predictions of energy stay modelled. On a host that has counters: `sudo chmod -R a+r "
        "/sys/class/powercap/intel-rapl`.",
        "GPU energy": "Only where there are NVIDIA GPUs: `pip install 'hpdlf[nvml]'`.",
    }
    finders: tuple[tuple[str, Callable[[], tuple[list[Any], str]]], ...] = (
        ("CPU energy", find_rapl_meters),
        ("GPU energy", find_nvml_meters),
    )
    for name, find in finders:
        meters, reason = find()
        if meters:
            findings.append(Finding(name=name, status="ok", value=", ".join(meter[0] for meter in meters)))
        else:
            findings.append(Finding(name=name, status="warn", value=reason, mend=mends[name]))
    return findings


def _allocator() -> list[Finding]:
    names = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_ARENA_MAX", "GLIBC_TUNABLES")
    wanted = rank_environment({})
    other = [f"{n}={os.environ[n]}" for n in names if n in os.environ and os.environ[n] != wanted[n]]
    if other:
        unset = " ".join(o.split("=")[0] for o in other)
        mend = f"Ranks keep what you have set; `unset {unset}` for the settings that measured fastest."
        return [Finding(name="Allocator", status="warn", value=", ".join(other), mend=mend)]
    return [
        Finding(
            name="Allocator",
            status="ok",
            value="hpdlf sets " + ", ".join(f"{n}={wanted[n]}" for n in names) + " for its ranks",
        )
    ]


def _profile() -> list[Finding]:
    path = user_folder() / "clusters" / "local.toml"
    try:
        load_cluster("local")
    except HpdlfError as error:
        first = str(error).splitlines()[0]
        value = f"none at {path}" if not path.exists() else first
        return [Finding(name="Profile of this machine", status="warn", value=value, mend="hpdlf profile measure")]
    return [Finding(name="Profile of this machine", status="ok", value=str(path))]


def _observations() -> list[Finding]:
    from ..models.cost import default_database

    path = default_database()
    mend = "`hpdlf refine RUN` makes one from a run; until then predictions use what ships with hpdlf."
    if not path.exists():
        return [Finding(name="Observations", status="warn", value=f"no database at {path}", mend=mend)]
    if not os.access(path, os.R_OK | os.W_OK):
        return [
            Finding(
                name="Observations",
                status="warn",
                value=f"{path} may not be written",
                mend="Choose another by $HPDLF_DATABASE.",
            )
        ]
    return [Finding(name="Observations", status="ok", value=f"{path} ({path.stat().st_size / 1e6:.1f} MB)")]


def _batch_system() -> list[Finding]:
    slurm = shutil.which("srun")
    if "SLURM_JOB_ID" in os.environ:
        nodes = os.environ.get("SLURM_JOB_NUM_NODES", "?")
        return [
            Finding(
                name="Batch system",
                status="ok",
                value=f"Slurm, inside job {os.environ['SLURM_JOB_ID']} on {nodes} nodes",
            )
        ]
    if slurm:
        mend = "On a login node, start inside an allocation: `salloc -N NODES`, then `hpdlf train`."
        return [Finding(name="Batch system", status="ok", value=f"Slurm ({slurm}), outside any job", mend=mend)]
    return [Finding(name="Batch system", status="ok", value="none")]


def _shared_memory(folder: Path = Path("/dev/shm")) -> list[Finding]:
    if not folder.is_dir():
        return []
    free_bytes = shutil.disk_usage(folder).free
    value = f"{free_bytes / 2**30:.1f} GiB free in {folder}"
    if free_bytes < 2**28:
        mend = "Ranks of one node exchange data there: free some, or start the container with `--shm-size 2g`."
        return [Finding(name="Shared memory", status="warn", value=value, mend=mend)]
    return [Finding(name="Shared memory", status="ok", value=value)]

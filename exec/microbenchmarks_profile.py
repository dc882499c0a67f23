"""From what was measured to a profile: every value with the measurement that it comes from, or marked as modelled."""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import RunError
from ..hwprofiles import PRECISIONS, Cluster, Device, Link, Node, Quantity, load_device

__all__ = ["Findings", "local_cluster"]

BY = "hpdlf profile measure"
FALLBACK = "generic-x86-core"


@dataclasses.dataclass(kw_only=True)
class Findings:
    """Everything found but the observations of operators and messages. Times in seconds, as `summarise` gives them."""

    cores: int
    date: str
    dispatch: Mapping[str, Any] | None = None
    triad_alone: Mapping[str, Any] | None = None
    triad_together: Sequence[Mapping[str, Any]] = ()
    overlap: Mapping[str, Any] | None = None
    idle_w: float | None = None
    busy_w: float | None = None
    no_energy: str = ""
    references: list[Mapping[str, Any]] = dataclasses.field(default_factory=list)


def local_cluster(
    name: str, found: Findings, operators: Sequence[Mapping[str, Any]], communication: Sequence[Mapping[str, Any]]
) -> Cluster:
    """The profile of this machine as one node whose devices are its cores.

    `operators` and `communication` are observations as dicts. Raises RunError if there is no matrix product among them.
    """
    device = _device(f"{name}-core", found, operators)
    link = _link(f"{name}-mpi", found, communication)
    # Without a measured link nothing can be said of several cores, so the profile offers one.
    count = found.cores if link else 1
    text = f"{BY}: physical cores that this process may use" if link else f"{BY}: one core, as no link was measured"
    devices = Quantity(value=float(count), unit="1", source=text, tier="measured", date=found.date)
    node = Node(name=name, description=_cpu_name(), device=device, devices=devices, link=link)
    description = f"this machine, measured on {found.date}: {_cpu_name()}, one device is one core"
    return Cluster(name=name, description=description, node=node, n_nodes=1)


def _device(name: str, found: Findings, operators: Sequence[Mapping[str, Any]]) -> Device:
    peak: dict[str, Quantity] = {}
    achieved: dict[str, Quantity] = {}
    for precision in PRECISIONS:
        products = [one for one in operators if one["family"] == "matmul" and one["dtype"] == precision]
        if products:
            peak[precision], achieved[precision] = _rates(products, found.date)
    if "float32" not in peak:
        raise RunError(
            "no matrix product in float32 was timed, so there is no profile to write; give the measurement more time"
        )
    assert found.dispatch is not None
    overhead = found.dispatch
    return Device(
        name=name,
        kind="cpu",
        description=f"one core of {_cpu_name()}, measured on {found.date}",
        peak_flops_per_s=peak,
        achieved_flops_per_s=achieved,
        memory_bytes=_memory(found),
        memory_bandwidth_bytes_per_s=_bandwidth(found),
        launch_overhead_s=_quantity(
            overhead["seconds"],
            "s",
            f"{BY}: a jitted call on one number",
            found.date,
            overhead["low_s"],
            overhead["high_s"],
        ),
        communication_overlap=_overlap(found),
        idle_w=_power(found.idle_w, "idle_w", "at rest", found),
        limit_w=_power(found.busy_w, "limit_w", "with every core in matrix products", found),
        compute_units=Quantity(
            value=1.0, unit="1", source="by definition: one device is one core", tier="modelled", date=found.date
        ),
        l1_cache_bytes=_cache(1, found.date),
        l2_cache_bytes=_cache(2, found.date),
        l3_cache_bytes=_cache(3, found.date),
    )


def _rates(products: Sequence[Mapping[str, Any]], date: str) -> tuple[Quantity, Quantity]:
    """The peak, from the fastest repeat of all products, and the best that one reaches in the median."""
    first = max(products, key=lambda one: one["flops"] / one["fastest_s"])
    best = max(products, key=lambda one: one["flops"] / one["seconds"])
    size = "matrix product of {m} x {n} x {k}".format
    top = first["flops"] / first["fastest_s"]
    sustained = best["flops"] / best["seconds"]
    peak = _quantity(
        top,
        "FLOP/s",
        f"{BY}: fastest repeat of any product, a {size(**first['shape'])}",
        date,
        min(sustained, top),
        top,
    )
    low, high = best["flops"] / best["high_s"], best["flops"] / best["low_s"]
    return peak, _quantity(sustained, "FLOP/s", f"{BY}: {size(**best['shape'])}, median", date, low, high)


def _bandwidth(found: Findings) -> Quantity:
    """Of a core while all stream, since in training they all do; alone it is the upper end."""
    assert found.triad_alone is not None
    together = sorted(one["bytes"] / one["seconds"] for one in found.triad_together)
    alone = found.triad_alone["bytes"] / found.triad_alone["seconds"]
    middle = together[len(together) // 2]
    source = f"{BY}: a = b + s c in NumPy while {len(together)} cores do the same; high is one core alone"
    return _quantity(middle, "B/s", source, found.date, together[0], max(alone, together[-1]))


def _overlap(found: Findings) -> Quantity:
    if found.overlap is None or found.overlap.get("share") is None:
        source = "not measured; 0 where every core computes, since the computing core itself has to move the data"
        return Quantity(value=0.0, unit="1", source=source, tier="modelled", date=found.date)
    source = (
        f"{BY}: share of an all-reduce of 16 MiB that hides behind matrix products of the same length, both cores busy"
    )
    return _quantity(found.overlap["share"], "1", source, found.date, found.overlap["low"], found.overlap["high"])


def _power(package_w: float | None, attribute: str, when: str, found: Findings) -> Quantity:
    if package_w is not None and package_w > 0:
        source = f"{BY}: energy counter of the CPU packages {when}, over {found.cores} cores"
        return _quantity(package_w / found.cores, "W", source, found.date)
    guess: Quantity = getattr(load_device(FALLBACK), attribute)
    source = f"no energy counter here; as for {FALLBACK}: {guess.source}"
    return dataclasses.replace(guess, source=source, tier="modelled", date=found.date)


def _link(name: str, found: Findings, communication: Sequence[Mapping[str, Any]]) -> Link | None:
    messages = sorted((one for one in communication if one["kind"] == "message"), key=lambda one: one["bytes"])
    reductions = sorted((one for one in communication if one["kind"] == "allreduce"), key=lambda one: one["bytes"])
    if not messages:
        return None
    small, large = messages[0], messages[-1]
    bandwidth = large["bytes"] / large["seconds"]
    source = f"{BY}: message between two ranks of this machine"
    collective = None
    if reductions:
        # The bus bandwidth of an all-reduce over n ranks is 2 (n - 1) / n of its bytes over its time.
        most = reductions[-1]
        share = 2 * (most["ranks"] - 1) / most["ranks"] * most["bytes"] / bandwidth
        text = f"{BY}: bus bandwidth of an all-reduce of {most['bytes']:,} bytes over that of messages"
        collective = _quantity(
            share / most["seconds"], "1", text, found.date, share / most["high_s"], share / most["low_s"]
        )
    return Link(
        name=name,
        description="MPI between two cores of this machine",
        latency_s=_quantity(
            small["seconds"], "s", f"{source}, {small['bytes']} bytes", found.date, small["low_s"], small["high_s"]
        ),
        bandwidth_bytes_per_s=_quantity(
            bandwidth,
            "B/s",
            f"{source}, {large['bytes']:,} bytes",
            found.date,
            large["bytes"] / large["high_s"],
            large["bytes"] / large["low_s"],
        ),
        efficiency=Quantity(
            value=1.0, unit="1", source="the bandwidth is already what programs see", tier="modelled", date=found.date
        ),
        collective_efficiency=collective,
    )


def _memory(found: Findings) -> Quantity:
    limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    source = "physical memory"
    try:
        allowed = int(Path("/sys/fs/cgroup/memory.max").read_text())
        if allowed < limit:
            limit, source = allowed, "memory allowed to this control group"
    except (OSError, ValueError):
        pass  # no control groups here, or no limit ("max")
    return _quantity(limit / found.cores, "B", f"{source}, over {found.cores} cores", found.date)


def _cache(level: int, date: str) -> Quantity | None:
    """The data cache of a level as the kernel describes it; None where it does not."""
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            found, kind = int((index / "level").read_text()), (index / "type").read_text().strip()
            size = int((index / "size").read_text().strip().removesuffix("K")) * 1024
            shared = (index / "shared_cpu_list").read_text().strip()
        except (OSError, ValueError):
            continue
        if found == level and kind in ("Data", "Unified"):
            source = f"the kernel's description of CPU 0, shared by the CPUs {shared}"
            return _quantity(float(size), "B", source, date)
    return None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _quantity(
    value: float, unit: str, source: str, date: str, low: float | None = None, high: float | None = None
) -> Quantity:
    """A measured value to six digits, more than it has; the bounds are widened to hold it."""
    value = float(f"{value:.6g}")
    return Quantity(
        value=value,
        unit=unit,
        source=source,
        tier="measured",
        low=None if low is None else min(float(f"{low:.6g}"), value),
        high=None if high is None else max(float(f"{high:.6g}"), value),
        date=date,
    )

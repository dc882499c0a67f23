"""Measured collectives of published tables, and the links on which they ran.

``read_collectives(DIR)`` reads what there is of

| file | what was timed | links |
|---|---|---|
| ``vtrain/allreduce_nccl_intranode.csv`` | nccl-tests, out of place, 2 to 8 GPUs of one node | 1 |
| ``deepbench/allreduce.csv`` | the best of NCCL 2.0, OSU and Baidu's ring on GPUs; MLSL on Xeon Phi | 2 |
| ``collectives/jeanzay_allreduce_4GB.csv`` | 4 GB on Jean Zay, with a known problem between nodes | 3 |
| ``simumax/system_network_params.json`` | that project's fits of NCCL, evaluated at four sizes | 4 |

1: `nvlink3`, `nvlink2`. 2: `pcie3`, `pcie3-host`, and between nodes one adapter of FDR each, which the table does not
say (`infiniband-fdr-1`); `omni-path-knl`. 3: `nvlink2-mesh`, `nvlink3`, `omni-path-4`. 4: `pcie4`, `nvlink5`.

NCCL 2.0 had neither trees nor the fast protocols, so its rows are compared with rings of the protocol Simple.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ...errors import DataError
from ...hwprofiles import Cluster, Link, load_device, load_link
from ...models.cost.fit_links import Timed, laid_out

__all__ = ["SYSTEMS", "Measured", "System", "read_collectives"]


@dataclass(frozen=True, kw_only=True)
class System:
    """A machine that was measured: the profiles of its links, devices per node, and which machines are its twins.

    family     systems of the same kind of machine; leaving a system out leaves its family out
    """

    name: str
    inner: str | None
    outer: str | None
    per_node: int
    device: str
    family: str

    def cluster(self, timed: Timed, *, inner: Link | None = None, outer: Link | None = None) -> Cluster:
        """The links around one measurement, those given in place of the profiles'."""
        own_inner = inner or (_link(self.inner) if self.inner else None)
        own_outer = outer or (_link(self.outer) if self.outer else None)
        return laid_out(own_inner, own_outer, nodes=timed.nodes, per_node=self.per_node, device=_device(self.device))


_link, _device = cache(load_link), cache(load_device)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One row of a table. `library` is what the table says of the software."""

    file: str
    system: System
    timed: Timed
    library: str


def _gpus(name: str, inner: str, outer: str | None, per_node: int, family: str) -> System:
    return System(
        name=name,
        inner=inner,
        outer=outer,
        per_node=per_node,
        device="A100-SXM-80",  # any GPU: what counts is that NCCL is used
        family=family,
    )


SYSTEMS: Mapping[tuple[str, str], System] = {
    ("vtrain", "A100"): _gpus("A100", "nvlink3", None, 8, "NVSwitch A100"),
    ("vtrain", "V100"): _gpus("V100", "nvlink2", None, 8, "cube mesh V100"),
    **{
        ("deepbench", name): _gpus(name, "pcie3", "infiniband-fdr-1", 8, "PCIe Pascal")
        for name in ("1080Ti", "TitanX_Pascal")
    },
    **{
        ("deepbench", name): _gpus(name, "pcie3-host", "infiniband-fdr-1", 8, "PCIe Maxwell and P100")
        for name in ("M40", "TitanX", "P100")
    },
    ("deepbench", "KNL7250"): System(
        name="KNL7250", inner=None, outer="omni-path-knl", per_node=1, device="Xeon-Gold-6148", family="KNL"
    ),
    ("jeanzay", "V100"): _gpus("Jean Zay V100", "nvlink2-mesh", "omni-path-4", 4, "Jean Zay"),
    ("jeanzay", "A100"): _gpus("Jean Zay A100", "nvlink3", "omni-path-4", 8, "Jean Zay"),
    ("simumax", "A100-PCIE-80GB"): _gpus("A100-PCIe", "pcie4", None, 8, "PCIe A100"),
    ("simumax", "B200-SXM"): _gpus("B200", "nvlink5", None, 8, "NVSwitch B200"),
}


def read_collectives(data: Path) -> list[Measured]:
    """Every measured collective in the tables under `data`, in their order.

    Raises:
        DataError: none of the tables is there, or one lacks a column.
    """
    found: list[Measured] = []
    for name, reader in _READERS.items():
        path = data / name
        if path.exists():
            try:
                found += reader(path, name)
            except (KeyError, ValueError, TypeError) as error:
                raise DataError(f"{path}: is no table of measured collectives as expected ({error!r})") from None
    if not found:
        raise DataError(f"{data}: holds none of {', '.join(_READERS)}")
    return found


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    import pandas as pd

    for row in pd.read_csv(path).to_dict("records"):
        yield {str(column): value for column, value in row.items()}


def _vtrain(path: Path, file: str) -> Iterator[Measured]:
    for row in _rows(path):
        timed = Timed("all_reduce", float(row["bytes"]), int(row["n_gpus"]), row["out_of_place_us"] * 1e-6)
        yield Measured(file=file, system=SYSTEMS["vtrain", row["gpu"]], timed=timed, library="NCCL")


def _deepbench(path: Path, file: str) -> Iterator[Measured]:
    for row in _rows(path):
        system = SYSTEMS.get(("deepbench", row["device"]))
        if system is None:
            continue
        ranks = int(row["n_ranks"])
        nodes = max(1, ranks // system.per_node)
        seconds = row["mean_time_ms"] * 1e-3
        old = "ring, Simple" if system.inner else ""
        timed = Timed("all_reduce", 4.0 * row["n_floats"], ranks, seconds, ranks if not system.inner else nodes, old)
        library = str(row["algorithm"]).removesuffix(" MPI").removesuffix(" Single")
        yield Measured(file=file, system=system, timed=timed, library=library)


def _jeanzay(path: Path, file: str) -> Iterator[Measured]:
    for row in _rows(path):
        system = SYSTEMS["jeanzay", row["gpu"].split("-")[0]]
        timed = Timed(
            "all_reduce", float(row["bytes"]), int(row["n_ranks"]), row["duration_s_median"], int(row["nodes"])
        )
        library = "NCCL with a known problem" if timed.nodes > 1 else "NCCL"
        yield Measured(file=file, system=system, timed=timed, library=library)


_SIMUMAX_KINDS = {
    "all_reduce": "all_reduce",
    "all_gather": "all_gather",
    "reduce_scatter": "reduce_scatter",
    "all2all": "all_to_all",
}


def _simumax(path: Path, file: str) -> Iterator[Measured]:
    """SimuMax's own prediction: ``scale n (p + offset)/p / (GiB/s x efficiency) + latency + fixed latency``."""
    networks = {
        "A100-PCIE-80GB": {8: "intra_node_pcie_8x", 4: "intra_node_pcie_4x", 2: "intra_node_pcie_2x"},
        "B200-SXM": {8: "high_intra_node"},
    }
    systems = json.loads(path.read_text())
    for device, by_ranks in networks.items():
        if device not in systems:
            continue
        for ranks, name in by_ranks.items():
            network = systems[device]["networks"][name]
            for theirs, kind in _SIMUMAX_KINDS.items():
                op = network["op"][theirs]
                bandwidth = network["bandwidth"]["gbps"] * 2**30 * op["efficient_factor"]
                fixed_us = op.get("fixed_latency_us_by_comm_num", {}).get(str(ranks), op.get("fixed_latency_us", 0.0))
                for nbytes in (2.0**24, 2.0**26, 2.0**28, 2.0**30):
                    moved = op["scale"] * nbytes * (ranks + op["offset"]) / ranks
                    seconds = moved / bandwidth + (op["latency_us"] + fixed_us) * 1e-6
                    timed = Timed(kind, nbytes, ranks, seconds)
                    yield Measured(file=file, system=SYSTEMS["simumax", device], timed=timed, library="SimuMax's fit")


_READERS: Mapping[str, Callable[[Path, str], Iterator[Measured]]] = {
    "vtrain/allreduce_nccl_intranode.csv": _vtrain,
    "deepbench/allreduce.csv": _deepbench,
    "collectives/jeanzay_allreduce_4GB.csv": _jeanzay,
    "simumax/system_network_params.json": _simumax,
}

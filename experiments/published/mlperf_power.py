"""MLPerf Training v4.0 power logs (mlcommons/training_results_v4.0): mean power at the wall of nodes with 8 H100, immersed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .measured import read_table

__all__ = ["FILE", "NodeRun", "node_runs"]

FILE = "mlperf_training/power_runs.csv"


class NodeRun(NamedTuple):
    """One training run on `nodes` nodes, each of which drew `node_w` watts on average over `seconds`."""

    system: str
    benchmark: str
    nodes: int
    seconds: float
    node_w: float


def node_runs(folder: Path) -> Iterator[NodeRun]:
    """All runs with positive power.

    Raises:
        DataError: the file cannot be read, or columns are missing.
    """
    needed = ("system", "benchmark", "n_node_power_files", "run_seconds", "avg_node_power_W")
    table = read_table(folder, FILE, needed)
    if table is None:
        return
    for system, benchmark, nodes, seconds, watts in zip(*(table[c] for c in needed), strict=True):
        if watts > 0 and nodes > 0:
            yield NodeRun(system, benchmark, int(nodes), float(seconds), float(watts))

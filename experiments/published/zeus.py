"""You, Chung, Chowdhury, "Zeus: understanding and optimizing GPU energy consumption of DNN training", NSDI 2023: mean
power (NVML, the GPU alone) and time per epoch by network, batch size and power limit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from .measured import read_table

__all__ = ["DEVICES", "FILE", "TrainingPower", "training_runs"]

FILE = "zeus_nsdi23/power_time_per_epoch.csv"
# The profiles that the table's short names may mean, the first whose power limit is at least the highest in the table.
DEVICES: Mapping[str, tuple[tuple[float, str], ...]] = {
    "P100": ((250.0, "P100-PCIE-16"), (300.0, "P100-SXM2")),
    "V100": ((250.0, "V100-PCIE-32"), (300.0, "V100-SXM2")),
    "A100": ((250.0, "A100-PCIE-40"), (300.0, "A100-PCIE-80"), (400.0, "A100-SXM-40")),
    "H100": ((350.0, "H100-PCIE-80"), (700.0, "H100-SXM")),
    "RTX6000": ((260.0, "Quadro-RTX-6000"),),
}


class TrainingPower(NamedTuple):
    """One configuration. `network` names network and data set ("bert_base_uncased/squad"), what a run's load depends on;
    `profile` is the name of the device's profile.
    """

    device: str
    profile: str
    network: str
    optimizer: str
    batch: int
    limit_w: float
    epoch_s: float
    watts: float


def training_runs(folder: Path) -> Iterator[TrainingPower]:
    """All rows with positive time and power.

    Raises:
        DataError: the file cannot be read, or columns are missing.
    """
    needed = ("gpu", "dataset", "network", "batch_size", "optimizer", "power_limit_W", "time_per_epoch_s",
              "average_power_W")  # fmt: skip
    table = read_table(folder, FILE, needed)
    if table is None:
        return
    highest = table.groupby("gpu")["power_limit_W"].max().to_dict()
    profiles = {gpu: _profile(str(gpu), limit) for gpu, limit in highest.items()}
    for gpu, data, network, batch, optimizer, limit, seconds, watts in zip(*(table[c] for c in needed), strict=True):
        if seconds > 0 and watts > 0:
            yield TrainingPower(
                gpu,
                profiles[gpu],
                f"{network}/{data}",
                optimizer,
                int(batch),
                float(limit),
                float(seconds),
                float(watts),
            )


def _profile(gpu: str, highest_w: float) -> str:
    choices = DEVICES.get(gpu, ())
    return next((name for limit, name in choices if limit >= highest_w), choices[-1][1] if choices else gpu)

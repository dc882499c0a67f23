"""A table of measured systems, one published value a row: what was run on what, how it was cut, and what came out.

The columns are those of ``system_cases_dev.csv``; a cell that the source does not fill is None, never 0. Nothing is interpreted
here: what the free text means is told in :mod:`.system_text`.
"""

from __future__ import annotations

import csv
import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import DataError

__all__ = ["QUANTITIES", "Case", "read_cases"]

# What rows measure, with the unit that each is given in and what one of it is in ours.
QUANTITIES: Mapping[str, Mapping[str, float]] = {
    "throughput": {"tokens/s": 1.0, "images/s": 1.0, "sequences/s": 1.0, "samples/s": 1.0},
    "throughput_per_device": {"tokens/s/device": 1.0, "images/s/device": 1.0, "sequences/s/device": 1.0},
    "iteration_time": {"s": 1.0, "ms": 1e-3},
    "time_to_train": {"s": 1.0, "min": 60.0, "h": 3600.0},
    "inference_latency": {"s": 1.0, "ms": 1e-3},
    "train_fwd_bwd_latency": {"s": 1.0, "ms": 1e-3},
    "achieved_flops_per_device": {"TFLOP/s": 1e12},
    "energy": {"kWh": 3.6e6, "J": 1.0, "MJ": 1e6},
    "avg_node_power": {"W": 1.0, "kW": 1e3},
    "device_hours": {"GPU-h": 3600.0},
}
_GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row. `seq_len` is the edge of an image where the network sees images; `measured_value` is in the table's `unit`.

    problem   cells of the row that cannot be read, in words; "" where there are none
    """

    case_id: str
    source: str
    model: str
    params: float | None = None
    layers: int | None = None
    hidden: int | None = None
    heads: int | None = None
    seq_len: int | None = None
    vocab: int | None = None
    hardware: str
    n_devices: int
    devices_per_node: int
    tp: int | None = None
    pp: int | None = None
    dp: int | None = None
    cp: int | None = None
    ep: int | None = None
    microbatch: int | None = None
    global_batch: int | None = None
    schedule: str = ""
    precision: str = ""
    recompute: str = ""
    measured_quantity: str
    measured_value: float
    unit: str
    framework: str = ""
    compiled: str = ""
    attention: str = ""
    interleave: int | None = None
    zero_stage: int | None = None
    nic_gbytes_per_s_per_node: float | None = None
    input: str = ""
    samples_to_stop: float | None = None
    round: str = ""
    group: str = ""
    weight: float = 1.0
    note: str = ""
    also_measured: str = ""
    problem: str = ""

    @property
    def measured_si(self) -> float:
        """The measured value in SI units (samples and tokens stay what they are).

        Raises:
            DataError: the quantity or its unit is not known.
        """
        units = QUANTITIES.get(self.measured_quantity)
        if units is None:
            raise DataError(
                f"{self.case_id}: measures '{self.measured_quantity}', which is none of {', '.join(QUANTITIES)}."
            )
        if self.unit not in units:
            raise DataError(
                f"{self.case_id}: {self.measured_quantity} in '{self.unit}'; expected {' or '.join(units)}."
            )
        return self.measured_value * units[self.unit]

    @property
    def peak_bytes(self) -> float | None:
        """The peak of allocated memory that was published for the same run; None where there is none."""
        found = re.search(r"peak alloc\D*([\d.]+)\s*(GiB|GB|MiB)", self.also_measured)
        return float(found[1]) * {"GiB": _GIB, "GB": 1e9, "MiB": 2**20}[found[2]] if found else None

    @property
    def scored(self) -> float:
        """The weight that the row counts with: none where the value is from memory."""
        return 0.0 if self.source.startswith("recalled") else self.weight


_FIELDS = {f.name: f for f in dataclasses.fields(Case) if f.name != "problem"}
_NEEDED = tuple(name for name, f in _FIELDS.items() if f.default is dataclasses.MISSING)


def read_cases(path: Path) -> list[Case]:
    """The rows of a table. Columns that are not known are ignored, optional ones may be absent, and a row with cells that cannot
    be read says so in `problem`.

    Raises:
        DataError: the file cannot be read, or lacks columns.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = [name for name in _NEEDED if name not in (reader.fieldnames or ())]
            if missing:
                raise DataError(
                    f"{path}: has no column {', '.join(missing)}. It should be laid out like system_cases_dev.csv."
                )
            return [_case(row, line) for line, row in enumerate(reader, 2)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{path}: cannot be read as CSV ({error}). Give a file laid out like system_cases_dev.csv."
        ) from None


def _case(row: Mapping[str, str | None], line: int) -> Case:
    values: dict[str, Any] = {}
    problems: list[str] = []
    for name, field in _FIELDS.items():
        text = (row.get(name) or "").strip()
        kind = str(field.type)
        if not text or text.lower() == "nan":
            if name in _NEEDED:
                problems.append(f"'{name}' is empty")
                values[name] = {"str": f"line {line}", "int": 1}.get(kind, math.nan)
            continue
        try:
            values[name] = text if kind == "str" else _number(text, whole=kind.startswith("int"))
        except ValueError as error:
            problems.append(f"'{name}' is '{text}', {error}")
            if name in _NEEDED:
                values[name] = 1 if kind == "int" else math.nan
    return Case(**values, problem="; ".join(problems))


def _number(text: str, *, whole: bool) -> float:
    try:
        number = float(text)
    except ValueError:
        raise ValueError("no number") from None
    if not math.isfinite(number) or number < 0.0:
        raise ValueError("neither 0 nor a positive number")
    if not whole:
        return number
    if number != int(number):
        raise ValueError("no whole number")
    return int(number)

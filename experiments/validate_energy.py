"""How well the shipped models of energy and power predict published measurements (part of
``python -m hpdlf.experiments.validate_operators``, or by itself: ``python -m hpdlf.experiments.validate_energy DIR``).

Nothing is fitted on the folder. Per table, device and op:

``getzner2023_cpu_energy/layers.csv``
    joules of a forward pass from the shape, by class of module; "network ..." for networks measured as one, "sum of
    layers ..." for those of one run added up
``zeus_nsdi23/power_time_per_epoch.csv``
    "power" from network, batch and power limit; "slowdown": time relative to the same run at its highest limit
``ml_energy_v3/inference_energy.csv``
    "power ..." by task, from model, batch and cut; the measured throughput is no input
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import HpdlfError
from ..hwprofiles import Device, load_device
from ..models.cost.cpu_energy import CpuEnergyModel, LayerEstimate
from ..models.cost.operation import Operation
from ..models.cost.power import Energy
from ..models.cost.power_serving import serving_powers
from ..models.cost.power_training import TrainingEstimate, training_power
from .published import getzner, ml_energy, zeus
from .scoring import summarise

__all__ = ["main", "rows"]


class _Cell:
    """What one row of the report is made of."""

    def __init__(self) -> None:
        self.measured: list[float] = []
        self.predicted: list[Energy] = []
        self.refused: Counter[str] = Counter()

    def add(self, measured: float, predicted: Energy) -> None:
        self.measured.append(measured)
        self.predicted.append(predicted)


_Cells = dict[tuple[str, str], _Cell]


def rows(data_dir: str | PathLike[str]) -> list[dict[str, Any]]:
    """Rows of :func:`.scoring.summarise` per file, device and op, of the tables that are in `data_dir`.

    Raises:
        DataError: a table cannot be read, or lacks columns.
    """
    folder = Path(data_dir)
    tables = ((getzner.FILE, _layers(folder)), (zeus.FILE, _training(folder)), (ml_energy.FILE, _serving(folder)))
    return [
        summarise(
            file=file,
            device=device,
            op=op,
            measured=cell.measured,
            predicted=[p.value for p in cell.predicted],
            low=[p.low for p in cell.predicted],
            high=[p.high for p in cell.predicted],
            refused=cell.refused,
        )
        for file, cells in tables
        for (device, op), cell in sorted(cells.items())
    ]


def _layers(folder: Path) -> _Cells:
    cells: _Cells = defaultdict(_Cell)
    measured = list(getzner.layers(folder))
    devices = _Profiles({m.device: getzner.DEVICES.get(m.device, m.device) for m in measured})
    if not measured:
        return cells
    model = CpuEnergyModel.shipped()
    sums: dict[tuple[str, str, str, int], list[tuple[float, Energy]]] = defaultdict(list)
    wanted = list(dict.fromkeys((m.device, o) for m in measured for o in m.operations))
    estimates: dict[tuple[str, Operation], LayerEstimate | None] = {}
    for name, device in devices.found.items():
        chosen = [o for d, o in wanted if d == name]
        estimates |= zip(((name, o) for o in chosen), model.estimate(chosen, device), strict=True)
    for m in measured:
        cell = cells[m.device, m.op]
        parts = [estimates.get((m.device, o)) for o in m.operations]
        known = [p.joules for p in parts if p is not None]
        if m.device in devices.problems:
            cell.refused[devices.problems[m.device]] += 1
        elif not parts:
            cell.refused["the shape is not known"] += 1
        elif len(known) < len(parts):
            cell.refused[f"{m.op} was never measured"] += 1
        else:
            cell.add(m.joules, model.total(known))
            if m.place:
                sums[m.device, m.network, m.run, m.batch].append((m.joules, known[0]))
    lengths = _lengths(measured)
    for (name, network, _, _), parts_ in sums.items():
        if network in lengths and len(parts_) == lengths[network]:
            cells[name, f"sum of layers {network}"].add(sum(j for j, _ in parts_), model.total([p for _, p in parts_]))
    return cells


def _lengths(measured: list[getzner.LayerEnergy]) -> dict[str, int]:
    """Layers per network, where the whole network is known."""
    return {network: n for network in {m.network for m in measured} if (n := len(getzner.layers_of(network, batch=1)))}


def _training(folder: Path) -> _Cells:
    cells: _Cells = defaultdict(_Cell)
    runs = list(zeus.training_runs(folder))
    devices = _Profiles({r.device: r.profile for r in runs})
    best: dict[tuple[str, str, str, int], zeus.TrainingPower] = {}
    for r in runs:
        key = (r.device, r.network, r.optimizer, r.batch)
        if key not in best or r.limit_w > best[key].limit_w:
            best[key] = r

    def estimate(run: zeus.TrainingPower, limit_w: float) -> TrainingEstimate:
        return training_power(run.network, devices.found[run.device], batch=run.batch, limit_w=limit_w)

    for r in runs:
        reference = best[r.device, r.network, r.optimizer, r.batch]
        if r.device in devices.problems:
            cells[r.device, "power"].refused[devices.problems[r.device]] += 1
            continue
        now = estimate(r, r.limit_w)
        cells[r.device, "power"].add(r.watts, now.watts)
        if r.limit_w < reference.limit_w:
            # The highest limit of the table may lie below the device's own.
            base = estimate(reference, reference.limit_w).slowdown.value
            slower = Energy(*(v / base for v in now.slowdown))
            cells[r.device, "slowdown"].add(r.epoch_s / reference.epoch_s, slower)
    return cells


def _serving(folder: Path) -> _Cells:
    cells: _Cells = defaultdict(_Cell)
    configurations = list(ml_energy.served(folder))
    devices = _Profiles({c.device: c.profile for c in configurations})
    accepted = []
    for c in configurations:
        reason = devices.problems.get(c.device) or c.problem
        if reason:
            cells[c.device, f"power {c.task}"].refused[reason] += 1
        elif c.load is not None:
            accepted.append((c, c.load))
    found = serving_powers([load for _, load in accepted], [devices.found[c.device] for c, _ in accepted])
    for (c, _), watts in zip(accepted, found, strict=True):
        cells[c.device, f"power {c.task}"].add(c.watts, watts)
    return cells


class _Profiles:
    """The profiles behind the names of a table, and why a name has none that can be used."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self.found: dict[str, Device] = {}
        self.problems: dict[str, str] = {}
        for name, profile in names.items():
            try:
                device = load_device(profile)
            except HpdlfError:
                self.problems[name] = f"no profile of {profile}"
                continue
            if device.limit_w is None:
                self.problems[name] = f"the profile of {profile} has no power limit"
            else:
                self.found[name] = device


def lines(report: list[dict[str, Any]]) -> Iterator[str]:
    """The rows as text."""
    yield f"{'file':44} {'device':12} {'op':28} {'n':>6} {'median':>7} {'p90':>7} {'bias':>7} {'cover':>6} {'width':>6}"
    for r in report:
        values = [r["median_ape"], r["p90_ape"], r["bias"], r["coverage90"], r["relative_width"]]
        shown = " ".join(f"{'-' if v is None else format(v, '.1%'):>7}" for v in values)
        yield f"{r['file']:44} {r['device']:12} {r['op']:28} {r['n']:6} {shown}"


def main(data: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="the folder with the tables")]) -> None:
    """Print the report."""
    for line in lines(rows(data)):
        typer.echo(line)


if __name__ == "__main__":
    typer.run(main)

"""Rebuilds the parameters of energy and power from the published measurements, bit for bit:

    python -m hpdlf.experiments.fit_power DATA_DIR

DATA_DIR is laid out as its README says; ``zeus_nsdi23``, ``ml_energy_v3`` and ``getzner2023_cpu_energy`` are read. Writes
``models/cost/power.json`` (GPUs by utilisation, power limit and clock; known networks in training), ``power_serving.json``
(GPUs that serve models) and ``cpu_energy.json`` (layers on CPUs), each with the report of its accuracy on what was left
out: whole networks, models, GPUs, limits and batch sizes. `--out FOLDER` writes elsewhere, to compare.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ..models.cost import power_parameters
from .fit_cpu_energy import fit_cpu_energy
from .fit_power_serving import fit_serving_power, fit_utilisation
from .fit_power_training import fit_training_power

__all__ = ["fit_all", "main"]

SHIPPED = Path(power_parameters.__file__).parent


def fit_all(data: Path) -> dict[str, Mapping[str, Any]]:
    """File name -> what it holds."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    # One thread adds up in one order.
    with threadpool_limits(1):
        device, networks, report = fit_training_power(data)
        utilisation, more = fit_utilisation(data, device["active_share"]["hbm"])
        intervals = device.pop("interval") | utilisation.pop("interval")
        power = {
            "format": power_parameters.FORMAT,
            "version": power_parameters.VERSION,
            "source": "Zeus (ml-energy/zeus, NSDI 2023); ML.ENERGY benchmark v3 (ml-energy/leaderboard)",
            "report": report | more,
            "device": device | utilisation | {"interval": intervals},
            "networks": networks,
        }
        return {
            "power.json": power,
            "power_serving.json": fit_serving_power(data),
            "cpu_energy.json": fit_cpu_energy(data),
        }


def write(found: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """Each file whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, plain in found.items():
        # What holds trees is not for reading.
        text = json.dumps(plain, indent=1) if "kinds" not in plain else json.dumps(plain, separators=(",", ":"))
        part = folder / f"{name}.part"
        part.write_text(text + "\n", encoding="utf-8")
        os.replace(part, folder / name)


def main(
    data: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="the folder with the published tables")],
    out: Annotated[Path, typer.Option(help="where the files go")] = SHIPPED,
) -> None:
    """Fit, write, and say how well what was left out is predicted."""
    found = fit_all(data)
    write(found, out)
    for name, plain in found.items():
        typer.echo(f"{out / name}")
        _say(plain["report"], "  ")


def _say(report: Mapping[str, Any], indent: str) -> None:
    for name, value in report.items():
        if not isinstance(value, Mapping):
            continue
        if "n" in value:
            line = f"{indent}{name}: {value['n']} rows, median error {value['median_ape']:.1%}, 90 % below {value['p90_ape']:.1%}"
            typer.echo(line)
        else:
            typer.echo(f"{indent}{name}")
        _say(value, indent + "  ")


if __name__ == "__main__":
    typer.run(main)

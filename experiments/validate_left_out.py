"""Whole networks on devices that the regressions never saw: each chip in turn is left out of fitting, and the sums over
the operators of ``neusight/model_layers.csv`` on it are predicted.

``python -m hpdlf.experiments.validate_left_out DATA_DIR [--json]`` grows the general regressions anew for every chip; it
takes a minute or two. Errors of single operators, left out in the same way, are inside the shipped file: ``hpdlf cost
accuracy``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from ..models.cost.operator_times import OperatorTimes
from .fit_operator_times import CHIPS, collect, general, launches, lots
from .published import neusight
from .validate_operators import networks

__all__ = ["main", "validate_left_out"]


def validate_left_out(folder: Path) -> list[dict[str, Any]]:
    """A row a network, as :func:`.validate_operators.validate` has them, each predicted without its chip.

    Raises:
        DataError: the folder has no table of networks.
    """
    layers = list(neusight.layer_rows(folder))
    if not layers:
        raise DataError(f"{folder}: holds no neusight/model_layers.csv, so there are no networks to predict.")
    measured, devices = collect(folder)
    chips = {name: CHIPS.get(device.name, device.name) for name, device in devices.items()}
    calls = launches(measured, devices)
    groups = [lot for lot in lots(measured, devices, OperatorTimes(general={}, launch_s=calls)) if lot.group != "convolution"]
    found = []
    for chip in sorted({chips[row.device] for row in layers if row.device in chips}):
        forests = {lot.group: general(lot.only(lot.chip != chip)) for lot in groups}
        others = {key: value for key, value in calls.items() if CHIPS.get(key[2], key[2]) != chip}
        model = OperatorTimes(general=forests, launch_s=others)
        found += networks([row for row in layers if chips.get(row.device) == chip], model)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the networks and the mean error of each device. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m hpdlf.experiments.validate_left_out", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("data", type=Path, metavar="DATA_DIR", help="folder with neusight/")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    chosen = parser.parse_args(arguments)
    try:
        found = validate_left_out(chosen.data)
    except DataError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if chosen.json:
        print(json.dumps(found, indent=1))
        return 0
    means: dict[tuple[str, str], list[float]] = {}
    for row in found:
        off = row["predicted_s"] / row["measured_s"] - 1
        means.setdefault((row["device"], row["phase"]), []).append(abs(off))
        print(f"{row['device']:16} {row['case']:28} {row['phase']:10} {row['measured_s'] * 1e3:9.1f} ms {off:+7.1%}")
    for (device, phase), errors in sorted(means.items()):
        print(f"{device:16} {phase:10} mean error {np.mean(errors):.1%} of {len(errors)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

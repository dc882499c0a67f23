"""Energy of CPU packages from the kernel's powercap interface (Intel's and AMD's RAPL).

The counter is in microjoules and starts again at ``max_energy_range_uj``; a reader adds the turns up as long as it is
read at least once per turn (minutes at full load). See the kernel's Documentation/power/powercap/powercap.rst.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

__all__ = ["find_rapl_meters"]

POWERCAP = Path("/sys/class/powercap")
Reader = tuple[str, Callable[[], float]]


def find_rapl_meters(root: Path = POWERCAP) -> tuple[list[Reader], str]:
    """(name, read in joules) of each CPU package under `root`, and why there is none."""
    if not root.is_dir():
        return [], f"RAPL: there is no {root}; virtual machines and containers usually hide it"
    readers: list[Reader] = []
    reason = f"RAPL: {root} has no CPU package; load the kernel's intel_rapl module"
    for zone in sorted(root.glob("intel-rapl:*")):
        # intel-rapl:0 is a package; intel-rapl:0:0 is a part of it and must not count twice.
        if zone.name.count(":") != 1:
            continue
        try:
            name = (zone / "name").read_text().strip()
            reader = _counter(zone)
            reader()
        except PermissionError:
            reason = f"RAPL: {zone / 'energy_uj'} is not readable; let an administrator run `chmod a+r` on it"
        except (OSError, ValueError) as error:
            reason = f"RAPL: {zone} cannot be read: {error}"
        else:
            if name.startswith("package"):
                readers.append((name, reader))
    return readers, "" if readers else reason


def _counter(zone: Path) -> Callable[[], float]:
    file = zone / "energy_uj"
    turn_uj = int((zone / "max_energy_range_uj").read_text())
    state = {"last_uj": int(file.read_text()), "turns": 0}

    def read_j() -> float:
        now_uj = int(file.read_text())
        if now_uj < state["last_uj"]:
            state["turns"] += 1
        state["last_uj"] = now_uj
        return (now_uj + state["turns"] * turn_uj) * 1e-6

    return read_j

"""The energy that this host's counters counted while a run went on."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import TracebackType

from .energy_meters import Meter, Meters, find_meters

__all__ = ["EnergyCount"]

READ_S = 20.0
"""Counters start again after minutes at full load, and only notice if they are read meanwhile."""


class EnergyCount:
    """Counts joules from entering the block to leaving it.

    energy_j      over all counters found; None where there is none, or one stopped answering
    unavailable   what is not counted, and why
    """

    def __init__(self, meters: Meters | None = None, *, read_s: float = READ_S) -> None:
        found = find_meters() if meters is None else meters
        self.energy_j: float | None = None
        self.unavailable = list(found.missing)
        self._meters: Sequence[Meter] = found.found
        self._read_s = read_s
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._keep_reading, name="energy", daemon=True)

    def __enter__(self) -> EnergyCount:
        self._before_j = self._read()
        if self._before_j is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before_j is None:
            return
        self._left.set()
        self._thread.join()
        after_j = self._read()
        if after_j is not None:
            self.energy_j = after_j - self._before_j

    def _keep_reading(self) -> None:
        while not self._left.wait(self._read_s):
            self._read()

    def _read(self) -> float | None:
        if not self._meters:
            return None
        total_j = 0.0
        for meter in self._meters:
            try:
                total_j += meter.read_j()
            except Exception as error:  # every vendor's library has errors of its own
                self._meters = ()
                self.unavailable.append(f"{meter.name}: stopped answering ({error})")
                return None
        return total_j

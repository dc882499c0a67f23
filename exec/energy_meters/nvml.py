"""Energy of NVIDIA GPUs from NVML's total energy counter (Volta and newer): millijoules since the driver was loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["find_nvml_meters"]

Reader = tuple[str, Callable[[], float]]


def find_nvml_meters() -> tuple[list[Reader], str]:
    """(name, read in joules) of each GPU that has a counter, and why there is none."""
    try:
        import pynvml  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return [], "NVML: the package is not installed; `pip install 'hpdlf[nvml]'` where there are NVIDIA GPUs"
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as error:
        return [], f"NVML: no NVIDIA GPU can be asked: {error}"
    readers: list[Reader] = []
    reason = "NVML: there is no NVIDIA GPU"
    for index, handle in enumerate(handles):
        try:
            pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        except pynvml.NVMLError as error:
            reason = f"NVML: GPU {index} has no energy counter: {error}"
        else:
            readers.append((f"gpu {index}", _counter(pynvml, handle)))
    return readers, "" if readers else reason


def _counter(pynvml: Any, handle: Any) -> Callable[[], float]:
    return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) * 1e-3

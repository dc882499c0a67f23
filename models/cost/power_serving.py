"""Power of GPUs that serve a language model or a diffusion model, from the model's size, the batch and the cut alone.

A decoding step reads the weights that its tokens touch and the keys and values of their context, and multiplies each
active weight once per sequence; a denoising step multiplies all weights once per patch of the image. Divided by the
device's bandwidth and peak these are times that mean the same on every device; boosted trees turn them, the number of
devices and the kind of model into the share of the power limit that a device draws. Measured throughput is no input:
energy per token or image is these watts over the throughput that the caller has or predicts.

Fitted by ``python -m hpdlf.experiments.fit_power`` on the ML.ENERGY benchmark (Chung et al., 2025; vLLM and xDiT on H100
and B200).

>>> from hpdlf.hwprofiles import load_device
>>> load = ServingLoad(kind="language", parameters=14e9, active_parameters=14e9, weight_bytes=2, batch=64, devices=1,
...     tokens=800)
>>> watts = serving_power(load, load_device("H100-SXM"))
>>> 400 < watts.value < 700, watts.low < watts.value < watts.high
(True, True)
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError, PlanError, ProfileError
from ...hwprofiles import Device
from .cpu_energy import forest_from_plain
from .power import Energy
from .trees import Forest

__all__ = ["FORMAT", "VERSION", "ServingLoad", "features_of", "serving_power"]

FORMAT, VERSION = "hpdlf serving power", 1
PATH = Path(__file__).with_name("power_serving.json")
# Bytes of keys and values per token of context: this times the square root of the active parameters in billions.
_CONTEXT_BYTES = 6e4
# Intervals differ by the predicted share of the limit: below, between and above these.
SHARES = (0.6, 0.8)


@dataclass(frozen=True, kw_only=True)
class ServingLoad:
    """What is served, and how.

    parameters, active_parameters  of the model, and those that one token uses (mixture of experts)
    weight_bytes   of one parameter (2 bfloat16, 1 fp8, 0.55 mxfp4 with its scales)
    batch          sequences in flight, or images of one batch, over all devices
    devices        all of them; `data_parallel` groups of them hold a copy each; `expert_parallel` as in the plan
    tokens         of a language model the mean length of an answer, of a diffusion model the patches of an image or video
    task           "chat", "code", "image" or "video": what goes in (language) or comes out (diffusion)
    recurrent      state-space layers instead of most of the attention
    sequence_parallel  of a diffusion model: (Ulysses degree, ring degree)
    """

    kind: Literal["language", "diffusion"]
    parameters: float
    active_parameters: float
    weight_bytes: float
    batch: float
    devices: int
    tokens: float
    data_parallel: int = 1
    tensor_parallel: int = 1
    expert_parallel: int = 1
    task: str = "chat"
    recurrent: bool = False
    sequence_parallel: tuple[int, int] = (1, 1)


def serving_power(load: ServingLoad, device: Device) -> Energy:
    """Mean watts of all devices together, with the 90 % interval of models that were left out of the fit.

    Raises:
        ProfileError: the device's profile has no power limit.
        PlanError: a number of the load is not positive.
    """
    return serving_powers([load], [device])[0]


def serving_powers(loads: Sequence[ServingLoad], devices: Sequence[Device]) -> list[Energy]:
    """:func:`serving_power` of many, at once."""
    found: list[Energy | None] = [None] * len(loads)
    for kind, (forest, intervals, known) in _shipped().items():
        at = [i for i, load in enumerate(loads) if load.kind == kind]
        if not at:
            continue
        shares = np.exp(forest.predict(np.array([features_of(loads[i], devices[i]) for i in at])))
        for i, share in zip(at, shares.tolist(), strict=True):
            limit = _limit_w(devices[i]) * loads[i].devices
            by_share = intervals["model" if devices[i].name in known else "device"]
            low, high = by_share[int(np.searchsorted(SHARES, share))]
            watts = min(share, 1.0) * limit
            found[i] = Energy(watts, watts * low, max(min(watts * high, limit * 1.01), watts))
    assert all(f is not None for f in found), "a load has one of the two kinds"
    return [f for f in found if f is not None]


def features_of(load: ServingLoad, device: Device) -> list[float]:
    """What the trees see; times are at the device's peaks, per device."""
    numbers = (load.parameters, load.active_parameters, load.weight_bytes, load.batch, load.devices, load.tokens)
    if min(numbers) <= 0 or load.active_parameters > load.parameters:
        raise PlanError(
            f"a served model needs positive sizes, and no more active than all parameters; this has parameters, active "
            f"parameters, bytes, batch, devices, tokens = {', '.join(f'{n:g}' for n in numbers)}."
        )
    bandwidth = device.memory_bandwidth_bytes_per_s.value
    half = device.peak_flops_per_s.get("bfloat16") or device.peak_flops_per_s.get("float16")
    peak = (half or device.peak_flops_per_s["float32"]).value
    log, devices = math.log, load.devices
    if load.kind == "diffusion":
        flops = 2.0 * load.parameters * load.tokens * load.batch
        ulysses, ring = load.sequence_parallel
        return [
            log(flops / devices / peak), log(load.tokens * load.batch / devices), log(load.tokens), log(devices),
            log(load.parameters), log(load.batch), log(ulysses), log(ring),
            log(load.parameters * load.weight_bytes / bandwidth), float(load.task == "video"),
        ]  # fmt: skip
    share = load.active_parameters / load.parameters
    # The experts that at least one of so many tokens chooses.
    touched = load.parameters * (1.0 if share >= 1 else 1 - (1 - share) ** (load.batch / load.data_parallel))
    weights = touched * load.weight_bytes * load.data_parallel / devices / bandwidth
    context = load.batch * load.tokens * _CONTEXT_BYTES * math.sqrt(load.active_parameters / 1e9) / devices / bandwidth
    arithmetic = 2.0 * load.active_parameters * load.batch / devices / peak
    return [
        log(weights), log(arithmetic), log(context), log(devices), log(load.tensor_parallel), log(load.expert_parallel),
        log(load.batch / devices), log(load.batch), log(load.active_parameters), float(share < 1), load.weight_bytes,
        float(load.recurrent), log(load.tokens), float(load.task == "image"), float(load.task == "video"),
        float(load.task == "code"),
    ]  # fmt: skip


def _limit_w(device: Device) -> float:
    if device.limit_w is None:
        raise ProfileError(f"{device.name} has no limit_power in its profile, without which its power is not known.")
    return device.limit_w.value


_Kind = tuple[Forest, Mapping[str, Sequence[tuple[float, float]]], frozenset[str]]


@cache
def _shipped() -> Mapping[str, _Kind]:
    try:
        plain = json.loads(PATH.read_text(encoding="utf-8"))
        if (plain["format"], plain["version"]) != (FORMAT, VERSION):
            raise ValueError(f"format {plain['format']!r} version {plain['version']!r} instead of {FORMAT!r} {VERSION}")
        return {kind: _kind(values, plain["devices"]) for kind, values in plain["kinds"].items()}
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{PATH}: cannot be used as parameters of serving power ({error}). "
            "Reinstall hpdlf, or rebuild the file with: python -m hpdlf.experiments.fit_power DATA_DIR"
        ) from None


def _kind(values: Mapping[str, Any], devices: Sequence[str]) -> _Kind:
    intervals = {name: [(low, high) for low, high in several] for name, several in values["interval"].items()}
    return forest_from_plain(values["forest"]), intervals, frozenset(devices)


def feature_table(loads: Sequence[ServingLoad], devices: Sequence[Device]) -> NDArray[np.float64]:
    """:func:`features_of` of loads of one kind [n, f]."""
    return np.array([features_of(load, device) for load, device in zip(loads, devices, strict=True)])

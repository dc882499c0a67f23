"""Chung et al., "The ML.ENERGY benchmark: toward automated inference energy measurement and optimization", 2025, version 3:
mean power and energy of language, image and video models served on H100 and B200.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ...models.cost.power_serving import ServingLoad
from .measured import read_table

__all__ = ["DEVICES", "FILE", "ServedPower", "served"]

FILE = "ml_energy_v3/inference_energy.csv"
DEVICES = {"H100": "H100-SXM", "B200": "B200-SXM", "H200": "H200-SXM", "A100": "A100-SXM-80"}
# mxfp4: four bits and a scale of eight bits per 32 values, some layers in bfloat16.
_WEIGHT_BYTES = {"bfloat16": 2.0, "float16": 2.0, "fp8": 1.0, "int8": 1.0, "mxfp4": 0.55, "float32": 4.0}
_TASKS = {"image-chat": "image", "video-chat": "video", "sourcegraph-fim": "code", "text-to-video": "video"}
# Denoising transformers see patches of 16 x 16 pixels, and every fourth frame.
_PATCH, _FRAMES = 16.0, 4.0


class ServedPower(NamedTuple):
    """One configuration: `watts` of all devices; `load` is None where the row lacks a number, `problem` says which."""

    device: str
    model: str
    task: str
    load: ServingLoad | None
    watts: float
    problem: str = ""

    @property
    def profile(self) -> str:
        """The name of the device's profile."""
        return DEVICES.get(self.device, self.device)


def served(folder: Path) -> Iterator[ServedPower]:
    """All rows with a positive power.

    Raises:
        DataError: the file cannot be read, or columns are missing.
    """
    needed = ("task", "activated_params_billions", "avg_power_watts", "gpu_model", "model_id", "num_gpus",
              "total_params_billions", "weight_precision")  # fmt: skip
    table = read_table(folder, FILE, needed)
    if table is None:
        return
    for row in table.to_dict("records"):
        if not row["avg_power_watts"] > 0:
            continue
        load, problem = _load(row)
        yield ServedPower(row["gpu_model"], row["model_id"], row["task"], load, float(row["avg_power_watts"]), problem)


def _load(row: Mapping[Any, Any]) -> tuple[ServingLoad | None, str]:
    def number(name: str, default: float | None = None) -> float:
        value = row.get(name)
        if value is None or value != value:
            if default is None:
                raise KeyError(name)
            return default
        return float(value)

    precision = str(row["weight_precision"])
    if precision not in _WEIGHT_BYTES:
        return None, f"unknown precision {precision}"
    try:
        common: dict[str, Any] = {
            "parameters": number("total_params_billions") * 1e9,
            "active_parameters": number("activated_params_billions") * 1e9,
            "weight_bytes": _WEIGHT_BYTES[precision],
            "devices": int(number("num_gpus")),
            "task": _TASKS.get(str(row["task"]), "chat"),
        }
        if number("inference_steps", 0.0) > 0:
            height, width = (
                number(f"image_{side}", -1.0) if number(f"image_{side}", -1.0) > 0 else number(f"video_{side}")
                for side in ("height", "width")
            )
            patches = height * width / _PATCH**2 * max(number("num_frames", 1.0) / _FRAMES, 1.0)
            degrees = (int(number("ulysses_degree", 1.0)), int(number("ring_degree", 1.0)))
            return ServingLoad(
                kind="diffusion", batch=number("batch_size"), tokens=patches, sequence_parallel=degrees, **common
            ), ""
        return ServingLoad(
            kind="language",
            batch=number("avg_batch_size"),
            tokens=number("avg_output_len"),
            data_parallel=int(number("data_parallel", 1.0)),
            tensor_parallel=int(number("tensor_parallel", 1.0)),
            expert_parallel=int(number("expert_parallel", 1.0)),
            recurrent="Mamba" in str(row.get("architecture")),
            **common,
        ), ""
    except KeyError as missing:
        return None, f"no {missing.args[0]}"

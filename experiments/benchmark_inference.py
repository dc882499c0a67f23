"""One side of the benchmark's inference: predictions by hpdlf and by onnxruntime from an ONNX file, and by PyTorch from a module
with the same weights, each as its users call it.

``python -m hpdlf.experiments.benchmark_inference ours|onnxruntime|eager FOLDER`` predicts batch after batch of what lies in FOLDER (see
:class:`.benchmark_baselines.Job`) and writes the seconds at the end of every window, its peak memory, and what it predicted for
the first batch.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .benchmark_baselines import Job, Recording

__all__ = ["difference", "main"]

NETWORK = "network.onnx"
Predict = Callable[[Mapping[str, np.ndarray]], np.ndarray]


def _ours(folder: Path, job: Job) -> Predict:
    from ..exec.affinity import bind_rank

    bind_rank()
    from ..exec.notebook import compile_model

    return compile_model(folder / NETWORK).predict


def _onnxruntime(folder: Path, job: Job) -> Predict:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job.threads
    session = onnxruntime.InferenceSession(folder / NETWORK, options, providers=["CPUExecutionProvider"])
    first = session.get_outputs()[0].name

    def predict(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        found: Any = session.run([first], dict(arrays))[0]
        return np.asarray(found)

    return predict


def _eager(folder: Path, job: Job) -> Predict:
    from .benchmark_torch import predictor

    return predictor(job, np.load(folder / "weights.npz"))


SIDES: Mapping[str, Callable[[Path, Job], Predict]] = {"ours": _ours, "onnxruntime": _onnxruntime, "eager": _eager}


def difference(folder: Path, one: str, other: str) -> float:
    """The largest difference between two sides' predictions for the first batch, over the largest of them."""
    a, b = (np.load(folder / f"{name}.first.npy") for name in (one, other))
    return float(np.abs(a - b).max() / np.abs(b).max())


def main(arguments: Sequence[str] | None = None) -> int:
    """Be one side."""
    parser = argparse.ArgumentParser(prog="python -m hpdlf.experiments.benchmark_inference", description=__doc__)
    parser.add_argument("side", choices=tuple(SIDES))
    parser.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    folder = options.folder.resolve()
    job = Job.read(folder)
    predict = SIDES[options.side](folder, job)
    data = np.load(folder / "data.npz")
    held = {name: data[name] for name in job.inputs}
    recording = Recording(job.window_steps)
    for number, chosen in enumerate(np.load(folder / "batches.npy")):
        found = predict({name: array[chosen] for name, array in held.items()})
        if not number:
            np.save(folder / f"{options.side}.first.npy", found)
        if recording.step(0.0):
            recording.window()
    recording.write(folder, options.side)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

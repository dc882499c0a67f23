"""One side of the benchmark's inference: predictions from an ONNX file, by hpdlf or by onnxruntime, each as its users call it.

``python -m hpdlf.experiments.benchmark_inference ours|onnxruntime FOLDER`` predicts batch after batch of what lies in FOLDER (see
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

Predict = Callable[[Mapping[str, np.ndarray]], np.ndarray]


def _ours(path: Path, job: Job) -> Predict:
    from ..exec.affinity import bind_rank

    bind_rank()
    from ..exec.notebook import compile_model

    return compile_model(path).predict


def _onnxruntime(path: Path, job: Job) -> Predict:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job.threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    first = session.get_outputs()[0].name

    def predict(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        found: Any = session.run([first], dict(arrays))[0]
        return np.asarray(found)

    return predict


def difference(folder: Path, one: str, other: str) -> float:
    """The largest difference between two sides' predictions for the first batch, over the largest of them."""
    a, b = (np.load(folder / f"{name}.first.npy") for name in (one, other))
    return float(np.abs(a - b).max() / np.abs(b).max())


def main(arguments: Sequence[str] | None = None) -> int:
    """Be one side."""
    parser = argparse.ArgumentParser(prog="python -m hpdlf.experiments.benchmark_inference", description=__doc__)
    parser.add_argument("side", choices=("ours", "onnxruntime"))
    parser.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    folder = options.folder.resolve()
    job = Job.read(folder)
    predict = {"ours": _ours, "onnxruntime": _onnxruntime}[options.side](folder / "network.onnx", job)
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

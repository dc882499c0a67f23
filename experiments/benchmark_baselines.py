"""What the executor is measured against: the same training written by hand, in JAX and in PyTorch.

``python -m hpdlf.experiments.benchmark_baselines NAME FOLDER`` trains what lies in FOLDER (see :class:`Job`) as a careful user
would write it for this one network. NAME is ``jax`` (jitted whole, everything donated), ``eager``, ``compile`` or ``ddp``
(PyTorch, :mod:`.benchmark_torch`). Each writes the seconds at the end of every window of steps, every loss, and its peak memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Job", "Measured", "Recording", "main", "peak_bytes", "read_measured", "windows"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """A training as a folder: job.json (this), network.onnx, data.npz (inputs and targets), weights.npz (in the order of the
    file) and batches.npy (int64 [steps, batch]).

    network         in :mod:`hpdlf.models.zoo`, of these `hyper`-parameters
    loss            "softmax_xent" or "mse"
    turned          weights that lie as [inputs, outputs]
    optimizer       "sgd" or "adam"
    window_steps    steps between two looks at the clock: between them nothing waits for a loss
    threads         to compute with
    """

    network: str
    optimizer: str
    learning_rate: float
    window_steps: int
    hyper: Mapping[str, Any] = field(default_factory=dict)
    loss: str = "softmax_xent"
    inputs: tuple[str, ...] = ("x",)
    targets: tuple[str, ...] = ("labels",)
    turned: tuple[str, ...] = ()
    threads: int = 1

    def write(self, folder: Path) -> None:
        """Write job.json."""
        (folder / "job.json").write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, folder: Path) -> Job:
        """Read job.json."""
        return cls(**json.loads((folder / "job.json").read_text()))


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one run of one side showed.

    window_s     seconds of every window of steps that counts (:func:`windows`)
    losses       of every step; none where nothing is trained
    peak_bytes   resident memory of the largest rank's process, from its start to its end
    """

    window_s: tuple[float, ...]
    losses: tuple[float, ...]
    peak_bytes: int


def read_measured(folder: Path, name: str, ranks: int) -> Measured:
    """What the ranks wrote: a window ends when the last rank ends it, the loss is the mean of theirs."""
    parts = [json.loads((folder / f"{name}.rank{r}.json").read_text()) for r in range(ranks)]
    ends_s = np.max([p["ends_s"] for p in parts], axis=0)
    losses = np.mean([p["losses"] for p in parts], axis=0)
    return Measured(
        window_s=windows(ends_s),
        losses=tuple(losses.tolist()),
        peak_bytes=max(p["peak_bytes"] for p in parts),
    )


def windows(ends_s: Sequence[float]) -> tuple[float, ...]:
    """The seconds of each window of steps in the second half of a run, from the times at which all windows end.

    The first half does not count: code is compiled in it, and memory is slow at first. A virtual machine that gave its memory back
    to its host gets it again page by page, and the host then looks for some seconds where it should lie: until that ends, steps
    of the same program were seen to take half as long again.

    >>> windows([9.0, 11.0, 12.0, 13.5])
    (1.0, 1.5)
    """
    return tuple(np.diff(ends_s).tolist()[(len(ends_s) - 1) // 2 :])


def peak_bytes() -> int:
    """What this process has held at most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Recording:
    """What one rank of a baseline writes down: :meth:`step` after each step, :meth:`write` at the end."""

    def __init__(self, window_steps: int) -> None:
        self.window_steps = window_steps
        self.ends_s: list[float] = []
        self.losses: list[Any] = []

    def step(self, loss: Any) -> bool:
        """Keep the step's loss, which may not be computed yet; whether a window ends with it."""
        self.losses.append(loss)
        return len(self.losses) % self.window_steps == 0

    def window(self) -> None:
        """A window has ended, now."""
        self.ends_s.append(time.perf_counter())

    def write(self, folder: Path, name: str, rank: int = 0) -> None:
        """Write NAME.rankR.json."""
        found = {"ends_s": self.ends_s, "losses": [float(v) for v in self.losses], "peak_bytes": peak_bytes()}
        (folder / f"{name}.rank{rank}.json").write_text(json.dumps(found))


# --- JAX -----------------------------------------------------------------------------------------------------------------------


def _train_jax(folder: Path) -> None:
    import jax
    import jax.numpy as jnp
    import optax

    job = Job.read(folder)
    data, batches = np.load(folder / "data.npz"), np.load(folder / "batches.npy")
    x, labels = data["x"], data["labels"].astype(np.int32)
    network = {"mlp": _jax_mlp, "digits_cnn": _jax_digits_cnn}[job.network]
    optimizer = {"sgd": optax.sgd, "adam": optax.adam}[job.optimizer](job.learning_rate)

    def loss_of(parameters: Any, x: Any, labels: Any) -> Any:
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(network(parameters, x), labels))

    def train_step(parameters: Any, state: Any, x: Any, labels: Any) -> Any:
        loss, gradients = jax.value_and_grad(loss_of)(parameters, x, labels)
        updates, state = optimizer.update(gradients, state, parameters)
        return optax.apply_updates(parameters, updates), state, loss

    compiled = jax.jit(train_step, donate_argnums=(0, 1))
    parameters = {n: jnp.array(w) for n, w in np.load(folder / "weights.npz").items()}
    if job.network == "digits_cnn":  # channels last, as XLA on a CPU wants it
        x = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
        parameters = {n: w.transpose(2, 3, 1, 0) if w.ndim == 4 else w for n, w in parameters.items()}
    state = optimizer.init(parameters)
    recording = Recording(job.window_steps)
    for chosen in batches:
        parameters, state, loss = compiled(parameters, state, x[chosen], labels[chosen])
        if recording.step(loss):
            jax.block_until_ready(loss)
            recording.window()
    recording.write(folder, "jax")


def _jax_mlp(parameters: Any, x: Any) -> Any:
    import jax

    layers = len(parameters) // 2
    for i in range(1, layers + 1):
        x = x @ parameters[f"dense{i}.weight"].T + parameters[f"dense{i}.bias"]
        x = jax.nn.relu(x) if i < layers else x
    return x


def _jax_digits_cnn(parameters: Any, x: Any) -> Any:
    import jax
    from jax import lax

    for i in (1, 2):
        kernel = parameters[f"conv{i}.weight"]
        x = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x = jax.nn.relu(x + parameters[f"conv{i}.bias"])
        n, height, width, channels = x.shape
        x = x.reshape(n, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))
    x = x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)
    x = jax.nn.relu(x @ parameters["dense1.weight"].T + parameters["dense1.bias"])
    return x @ parameters["dense2.weight"].T + parameters["dense2.bias"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Be one rank of a baseline."""
    parser = argparse.ArgumentParser(prog="python -m hpdlf.experiments.benchmark_baselines", description=__doc__)
    parser.add_argument("baseline", choices=("jax", "eager", "compile", "ddp"))
    parser.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    folder = options.folder.resolve()
    if options.baseline == "jax":
        _train_jax(folder)
    else:
        from .benchmark_torch import train

        train(folder, options.baseline)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

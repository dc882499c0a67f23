"""What the executor is measured against: the same training written by hand, in JAX and in PyTorch.

``python -m hpdlf.experiments.benchmark_baselines jax|ddp FOLDER`` trains what lies in FOLDER (see :class:`Job`) as a careful
user would write it for this one network: JAX jitted whole with everything donated, PyTorch as DistributedDataParallel over
gloo. Each writes the seconds at the end of every window of steps, and every loss.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Job", "Measured", "main", "read_measured"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """A training as a folder: job.json (this), data.npz (x, labels), weights.npz and batches.npy (int64 [steps, batch]).

    network         "digits_cnn" or "mlp", as in :mod:`hpdlf.models.zoo`
    optimizer       "sgd" or "adam"
    window_steps    steps between two looks at the clock: between them nothing waits for a loss
    """

    network: str
    optimizer: str
    learning_rate: float
    window_steps: int

    def write(self, folder: Path) -> None:
        """Write job.json."""
        (folder / "job.json").write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, folder: Path) -> Job:
        """Read job.json."""
        return cls(**json.loads((folder / "job.json").read_text()))


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Seconds of every window of steps but the first, in which code is compiled; the loss of every step."""

    window_s: tuple[float, ...]
    losses: tuple[float, ...]


def read_measured(folder: Path, name: str, ranks: int) -> Measured:
    """What the ranks wrote: a window ends when the last rank ends it, the loss is the mean of theirs."""
    parts = [json.loads((folder / f"{name}.rank{r}.json").read_text()) for r in range(ranks)]
    ends_s = np.max([p["ends_s"] for p in parts], axis=0)
    losses = np.mean([p["losses"] for p in parts], axis=0)
    return Measured(window_s=tuple(np.diff(ends_s).tolist()), losses=tuple(losses.tolist()))


def _write(folder: Path, name: str, rank: int, ends_s: Sequence[float], losses: Sequence[float]) -> None:
    (folder / f"{name}.rank{rank}.json").write_text(json.dumps({"ends_s": list(ends_s), "losses": list(losses)}))


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
    ends_s, losses = [], []
    for step, chosen in enumerate(batches, start=1):
        parameters, state, loss = compiled(parameters, state, x[chosen], labels[chosen])
        losses.append(loss)
        if step % job.window_steps == 0:
            jax.block_until_ready(loss)
            ends_s.append(time.perf_counter())
    _write(folder, "jax", 0, ends_s, [float(v) for v in losses])


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


# --- PyTorch -------------------------------------------------------------------------------------------------------------------


def _train_ddp(folder: Path) -> None:
    import torch
    from torch import distributed, nn

    from ..exec.mpi import detect_mpi_context

    context = detect_mpi_context()
    rank, ranks = (context.rank, context.size) if context else (0, 1)
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=ranks)
    job = Job.read(folder)
    data, batches = np.load(folder / "data.npz"), np.load(folder / "batches.npy")
    x, labels, weights = data["x"], data["labels"], np.load(folder / "weights.npz")
    layers = len(weights) // 2
    modules: list[Any] = []
    for i in range(1, layers + 1):
        weight = weights[f"dense{i}.weight"]
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.weight.data.copy_(torch.from_numpy(weight))
        layer.bias.data.copy_(torch.from_numpy(weights[f"dense{i}.bias"]))
        modules += [layer, *([nn.ReLU()] if i < layers else [])]
    model = nn.parallel.DistributedDataParallel(nn.Sequential(*modules), gradient_as_bucket_view=True)
    rule: Callable[..., Any] = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[job.optimizer]
    optimizer = rule(model.parameters(), lr=job.learning_rate)
    share = batches.shape[1] // ranks
    ends_s, losses = [], []
    for step, chosen in enumerate(batches[:, rank * share : (rank + 1) * share], start=1):
        optimizer.zero_grad(set_to_none=True)
        scores = model(torch.from_numpy(x[chosen]))
        loss = nn.functional.cross_entropy(scores, torch.from_numpy(labels[chosen]))
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        if step % job.window_steps == 0:
            ends_s.append(time.perf_counter())
    _write(folder, "ddp", rank, ends_s, [float(v) for v in losses])
    distributed.destroy_process_group()


def main(arguments: Sequence[str] | None = None) -> int:
    """Be one rank of a baseline."""
    parser = argparse.ArgumentParser(prog="python -m hpdlf.experiments.benchmark_baselines", description=__doc__)
    parser.add_argument("baseline", choices=("jax", "ddp"))
    parser.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    {"jax": _train_jax, "ddp": _train_ddp}[options.baseline](options.folder.resolve())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

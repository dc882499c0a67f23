"""The PyTorch baselines: training eager, compiled, and DistributedDataParallel over gloo; and predictions.

As a careful user writes them on a CPU: pictures and their weights with channels last, gradients freed between steps, the
optimiser's fused kernel, buckets that are views of the gradients, and no buffers sent round, as nothing reads running statistics
while training. Predictions are made in inference mode.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .benchmark_baselines import Job, Recording
from .benchmark_torch_pictures import PICTURES
from .benchmark_torch_sequences import SEQUENCES

__all__ = ["NETWORKS", "load", "network", "predictor", "train"]

NETWORKS: Mapping[str, Callable[..., Any]] = {**PICTURES, **SEQUENCES}


def network(job: Job, weights: Mapping[str, np.ndarray]) -> Any:
    """The module of `job`, with these weights by name, in the order in which the zoo makes them."""
    module = NETWORKS[job.network](**job.hyper)
    load(module, weights, turned=job.turned)
    return module


def load(module: Any, weights: Mapping[str, np.ndarray], *, turned: tuple[str, ...] = ()) -> None:
    """Copy `weights` into the module's parameters and statistics, one after the other; those `turned` are transposed.

    The zoo and the module make their layers in the same order; what else the file holds ("constant.3") is passed over.
    """
    import torch

    slots = {n: t for n, t in module.state_dict().items() if not n.endswith("num_batches_tracked")}
    given = {n: w.T if n in turned else w for n, w in weights.items() if not n.startswith("constant.")}
    shapes = [tuple(t.shape) for t in slots.values()], [w.shape for w in given.values()]
    assert shapes[0] == shapes[1], f"the module is not the network: {shapes}"
    with torch.no_grad():
        for slot, weight in zip(slots.values(), given.values(), strict=True):
            slot.copy_(torch.from_numpy(np.array(weight)))


def train(folder: Path, mode: str) -> None:
    """Train what lies in `folder`; `mode` is "eager", "compile" or "ddp"."""
    import torch
    from torch import distributed

    from ..exec.mpi import detect_mpi_context

    context = detect_mpi_context()
    rank, ranks = (context.rank, context.size) if context else (0, 1)
    job = Job.read(folder)
    torch.set_num_threads(job.threads)
    module = network(job, np.load(folder / "weights.npz"))
    if job.network in PICTURES:
        module = module.to(memory_format=torch.channels_last)
    parameters = list(module.parameters())
    if mode == "ddp":
        rendezvous = f"file://{folder / 'rendezvous'}"
        distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=ranks)
        module = _data_parallel(module)
    elif mode == "compile":
        module = torch.compile(module)
    rule: Callable[..., Any] = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[job.optimizer]
    optimizer = rule(parameters, lr=job.learning_rate, fused=True)
    batches = np.load(folder / "batches.npy")
    share = batches.shape[1] // ranks
    fetch = _reader(folder, job)
    recording = Recording(job.window_steps)
    for chosen in batches[:, rank * share : (rank + 1) * share]:
        inputs, targets = fetch(chosen)
        optimizer.zero_grad(set_to_none=True)
        loss = _loss(job, module(*inputs), *targets)
        loss.backward()
        optimizer.step()
        if recording.step(loss.detach()):
            recording.window()
    recording.write(folder, mode, rank)
    if mode == "ddp":
        distributed.destroy_process_group()


def predictor(job: Job, weights: Mapping[str, np.ndarray]) -> Callable[[Mapping[str, np.ndarray]], np.ndarray]:
    """The network of `job` as a function of its inputs by name, giving its first output; pictures (N, C, H, W) become
    channels last on their way.
    """
    import torch

    torch.set_num_threads(job.threads)
    module = network(job, weights).eval()
    pictures = job.network in PICTURES
    if pictures:
        module = module.to(memory_format=torch.channels_last)

    def predict(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        with torch.inference_mode():
            given = [torch.from_numpy(arrays[name]) for name in job.inputs]
            if pictures:
                given = [tensor.contiguous(memory_format=torch.channels_last) for tensor in given]
            found: np.ndarray = module(*given).numpy()
            return found

    return predict


def _data_parallel(module: Any) -> Any:
    from torch.nn.parallel import DistributedDataParallel

    named = inspect.signature(DistributedDataParallel).parameters  # PyTorch renames the option
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in named else "broadcast_buffers"
    return DistributedDataParallel(module, gradient_as_bucket_view=True, **{buffers: False})


def _reader(folder: Path, job: Job) -> Callable[[np.ndarray], tuple[list[Any], list[Any]]]:
    """Inputs and targets of the chosen samples; pictures lie with channels last already."""
    import torch

    data = np.load(folder / "data.npz")
    held = {name: data[name] for name in (*job.inputs, *job.targets)}
    pictures = {name for name in job.inputs if held[name].ndim == 4}
    held.update({name: np.ascontiguousarray(held[name].transpose(0, 2, 3, 1)) for name in pictures})

    def tensor(name: str, chosen: np.ndarray) -> Any:
        array = torch.from_numpy(held[name][chosen])
        return array.permute(0, 3, 1, 2) if name in pictures else array

    return lambda chosen: ([tensor(n, chosen) for n in job.inputs], [tensor(n, chosen) for n in job.targets])


def _loss(job: Job, output: Any, target: Any) -> Any:
    """As the import of ONNX appends it: [samples, classes, ...] with labels alike, or one row for every token."""
    from torch.nn import functional

    if job.loss == "mse":
        return functional.mse_loss(output, target)
    if output.dim() == 3:
        return functional.cross_entropy(output.flatten(0, 1), target.flatten())
    return functional.cross_entropy(output, target)

"""What the benchmark of the executor runs: networks, how they are trained, and what each has to reach.

A workload becomes a folder (:func:`prepare`) that both sides read: the network, its weights, data, and the order of samples.
All of it is random by a fixed seed but the digits, so that both compute the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..exec.affinity import allowed_cpus
from .benchmark_baselines import Job

if TYPE_CHECKING:
    from onnx import ModelProto

    from ..models.onnxpp import Graph, Onnxpp
    from ..models.plan import Recipe

__all__ = ["BASELINES", "SECOND", "WORKLOADS", "Workload", "prepare"]

CONFIGURATION = "benchmark"
DAMPED = 0.2
"""What the last normalisation of a residual block multiplies by at first (Goyal et al. 2017, arXiv 1706.02677, section 5.1, take 0).
With 1, a residual network on noise magnifies rounding tenfold in every step, and the losses of two sides part after a few.
"""

BASELINES: Mapping[str, str] = {
    "jax": "hand-written JAX",
    "eager": "PyTorch eager",
    "compile": "torch.compile",
    "ddp": "PyTorch DDP",
    "onnxruntime": "onnxruntime",
}
"""What is compared with, by the name in :class:`Workload`."""

SECOND: Mapping[str, str] = {"training": "compile", "inference": "eager"}
"""By kind of workload, what it is compared with beside what `least` and `aim` speak of."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A network, how it is run, and what it is compared with.

    network        of :mod:`hpdlf.models.zoo`, made with `hyper`
    loss           "softmax_xent" or "mse"
    threads        cores of each rank; None: all that this process may use, shared out to the ranks
    baselines      of :data:`BASELINES`, each compared with the same runs of ours
    steps          of one run: trainings, or predictions
    window_steps   steps per reading of the clock
    samples        of the data set, in batches
    least, aim     the ratio to the first baseline that we hold ourselves to, and the one that we want
    """

    name: str
    network: str
    baselines: tuple[str, ...]
    batch: int
    steps: int
    window_steps: int
    least: float
    aim: float | None = None
    hyper: Mapping[str, Any] = field(default_factory=dict)
    kind: Literal["training", "inference"] = "training"
    loss: str = "softmax_xent"
    ranks: int = 1
    threads: int | None = None
    optimizer: Literal["sgd", "adam"] = "sgd"
    learning_rate: float = 0.01
    samples: int = 4

    @property
    def cores(self) -> int:
        """Of each rank, on this machine."""
        if self.threads is not None:
            return self.threads
        return max(1, len(allowed_cpus()) // self.ranks)

    @property
    def title(self) -> str:
        """What people call it."""
        if self.kind == "inference":
            return f"{self.name}, inference"
        return f"{self.name}, {self.ranks} ranks" if self.ranks > 1 else self.name


_MLP: dict[str, Any] = {"network": "mlp", "hyper": {"widths": (2048, 2048, 2048, 2048)}, "batch": 256, "samples": 8}
_BERT: dict[str, Any] = {
    "network": "bert",
    "hyper": {"layers": 12, "hidden": 768, "heads": 12, "seq_len": 128, "dropout": 0.0, "pretraining": False},
    "batch": 8,
}

_by_hand = partial(Workload, threads=1, baselines=("jax",), least=0.9)
_eager = partial(Workload, baselines=("eager", "compile"), window_steps=1, least=0.8, aim=1.1)
_picture = partial(_eager, learning_rate=1e-3)

_BY_HAND = (
    _by_hand(
        name="digits_cnn",
        network="digits_cnn",
        batch=64,
        steps=1000,
        window_steps=50,
        optimizer="adam",
        learning_rate=1e-3,
    ),
    _by_hand(name="mlp 3x2048", **_MLP, steps=28, window_steps=4),
)

_ONE_PROCESS = (
    _eager(name="mlp 3x2048", **_MLP, steps=200, window_steps=10, least=1.5, aim=2.0),
    _eager(name="gpt 4x512", network="gpt_blocks", loss="mse", batch=8, steps=20, least=1.1, aim=1.3),
    _picture(
        name="resnet18 64",
        network="resnet",
        hyper={"depth": 18, "image": 64},
        batch=16,
        steps=200,
        window_steps=10,
        least=1.0,
        aim=1.3,
    ),
    _picture(name="resnet18 224", network="resnet", hyper={"depth": 18}, batch=16, steps=24),
    _picture(name="resnet50 224", network="resnet", hyper={"depth": 50}, batch=8, steps=16),
    _picture(name="mobilenet_v3 224", network="mobilenet_v3", batch=16, steps=48),
    _picture(name="unet 128", network="unet", batch=4, steps=48),
    _eager(name="bert_base 128", **_BERT, steps=10),
)

WORKLOADS = (
    *_BY_HAND,
    *_ONE_PROCESS,
    *(
        replace(w, ranks=2, threads=1, baselines=("ddp",), least=1.0 if "224" in w.name else 1.2, aim=1.5)
        for w in _ONE_PROCESS
    ),
    *(
        replace(w, kind="inference", baselines=("onnxruntime", "eager"), steps=48, window_steps=4, least=0.6, aim=1.0)
        for w in _ONE_PROCESS
        if w.name in ("resnet50 224", "bert_base 128")
    ),
)


# --- the folder that both sides read ------------------------------------------------------------------------------------------


def prepare(workload: Workload, folder: Path, *, tune_s: float = 0.0) -> None:
    """Write network, data, weights and the order of samples, and for a training an approved plan (plan.json) of the same.

    tune_s   seconds that may be spent on measuring how the network's convolutions are computed fastest

    Raises:
        HpdlfError: the network cannot be planned or tuned like this.
    """
    import onnx
    from onnx import numpy_helper

    from ..models.onnxpp import import_model
    from ..models.plan import Recipe

    folder.mkdir(parents=True)
    network = _network(workload)
    onnx.save(network, folder / "network.onnx")
    training = workload.kind == "training"
    model = import_model(folder / "network.onnx", loss=workload.loss if training else None)
    graph = model.graph
    _save(folder / "data.npz", _data(workload, graph))
    weights = {w.name: numpy_helper.to_array(w) for w in network.graph.initializer}
    _save(folder / "weights.npz", weights)
    recipe = Recipe.model_validate(
        {
            "steps": workload.steps,
            "data": {"source": "data.npz"},
            "optimizer": {"name": workload.optimizer, "learning_rate": workload.learning_rate},
        }
    )
    np.save(folder / "batches.npy", _batches(workload, recipe))
    Job(
        network=workload.network,
        hyper=dict(workload.hyper),
        loss=workload.loss,
        inputs=tuple(graph.inputs),
        targets=tuple(graph.targets),
        turned=tuple(n.input[1] for n in network.graph.node if n.op_type == "MatMul" and n.input[1] in weights),
        optimizer=workload.optimizer,
        learning_rate=workload.learning_rate,
        window_steps=workload.window_steps,
        threads=workload.cores,
    ).write(folder)
    if tune_s > 0:
        from .tuning import tune

        tune(model, batch=workload.batch // workload.ranks, threads=workload.cores, seconds=tune_s)
    if training:
        _write_plan(workload, model, recipe, folder)


def _save(path: Path, arrays: Mapping[str, Any]) -> None:
    np.savez(path, **arrays)


def _network(workload: Workload) -> ModelProto:
    from ..models import zoo

    make = getattr(zoo, workload.network)
    hyper = dict(workload.hyper)
    if workload.network == "mlp":
        return make(hyper.pop("widths"), **hyper)
    if workload.network == "digits_cnn":
        return make(**hyper)
    network = make(**hyper, seed=0)
    return (
        _damped(network, last="conv3" if hyper["depth"] >= 50 else "conv2") if workload.network == "resnet" else network
    )


def _damped(network: ModelProto, *, last: str) -> ModelProto:
    """The network with less of what its blocks add, `last` being the convolution that each ends with."""
    import onnx

    for weight in network.graph.initializer:
        if weight.name.endswith(f".{last}.norm.weight"):
            values = DAMPED * onnx.numpy_helper.to_array(weight)
            weight.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), weight.name))
    return network


def _data(workload: Workload, graph: Graph) -> dict[str, np.ndarray]:
    """An array for each input and target."""
    if workload.network == "digits_cnn":
        from sklearn.datasets import load_digits

        digits = load_digits()
        return {"x": (digits.images[:, None] / 16).astype(np.float32), "labels": digits.target.astype(np.int64)}
    rng = np.random.default_rng(0)
    samples = workload.samples * workload.batch
    found: dict[str, np.ndarray] = {}
    for name in (*graph.inputs, *graph.targets):
        tensor = graph.tensors[name]
        dims = tensor.dims(samples)
        if name == "mask":  # sentences of at least half the length, filled up
            lengths = rng.integers(dims[1] // 2, dims[1] + 1, samples)
            found[name] = (np.arange(dims[1]) < lengths[:, None]).astype(np.float32)
        elif tensor.is_float:
            found[name] = rng.standard_normal(dims, dtype=np.float32)
        else:
            found[name] = rng.integers(0, _limit(graph, name), dims)
    return found


def _limit(graph: Graph, name: str) -> int:
    """How many values an integer tensor may have: rows of the table that it selects from, or classes."""
    through = {name}
    for node in graph.operators:
        reads = through & set(node.inputs)
        if node.op_type == "Gather" and node.inputs[1] in reads:
            return int(graph.tensors[node.inputs[0]].shape[node.attributes.get("axis", 0)].fixed)
        if node.op_type == "SoftmaxCrossEntropyLoss" and node.inputs[1] in reads:
            return int(graph.tensors[node.inputs[0]].shape[1].fixed)
        if reads and node.op_type in ("Reshape", "Transpose"):
            through.add(node.outputs[0])
    raise AssertionError(f"nothing says what values {name} may have")


def _batches(workload: Workload, recipe: Recipe) -> np.ndarray:
    """The samples of every step, int64 [steps, batch], as a run of ours draws them."""
    from ..exec.sampling import Sampler, split_samples

    samples = 1797 if workload.network == "digits_cnn" else workload.samples * workload.batch
    train, _ = split_samples(samples, recipe)
    sampler = Sampler(train=train, batch=workload.batch, seed=recipe.seed)
    return np.stack([sampler.global_batch(s) for s in range(workload.steps)])


def _write_plan(workload: Workload, model: Onnxpp, recipe: Recipe, folder: Path) -> None:
    """Plan data parallel over the ranks and approve it: the benchmark runs what a user runs."""
    from ..hwprofiles import load_cluster
    from ..models.cost import ObservationDatabase
    from ..models.plan import Strategy
    from ..sim import simulate
    from .hinting import hint_lowerings
    from .trial_plans import write_trial_plan

    cores = f"x{workload.cores}" if workload.cores > 1 else ""
    cluster = load_cluster(f"generic-x86:1x{workload.ranks}{cores}")
    strategy = Strategy.of(batch=workload.batch, data=workload.ranks)
    hinted = hint_lowerings(model.graph, cluster, strategy, ObservationDatabase())
    prediction = simulate(model.graph, cluster, strategy, optimizer=workload.optimizer)
    write_trial_plan(
        model,
        cluster,
        strategy,
        recipe,
        folder,
        trial=CONFIGURATION,
        hints=hinted.hints,
        prediction=prediction.to_dict(),
    )

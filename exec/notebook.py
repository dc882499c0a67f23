"""A model that trains and predicts in this process, as fast as a run of a plan: what `hpdlf.compile` gives a notebook.

There is one path. The model is lowered for one rank to the program that a plan of one rank has, and its compute instructions
are those of :class:`hpdlf.exec.compute.ComputeActions`; only the launcher, the files and the threads that load and report
are missing. So what trains here trains the same under `hpdlf train`, on any number of ranks.

>>> import numpy as np
>>> from hpdlf.models.zoo import small
>>> net = compile_model(small.mlp((8, 16, 4)), loss="softmax_xent", learning_rate=0.1)
>>> x, labels = np.ones((32, 8), np.float32), np.zeros(32, np.int64)
>>> losses = [float(net.step(x, labels)) for _ in range(3)]
>>> losses[2] < losses[0], net.predict(x).shape
(True, (32, 4))
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from onnx import ModelProto

from ..errors import ModelError, PlanError
from ..models.onnxpp import Onnxpp, import_model
from ..models.plan import Recipe
from ..models.plan.recipe import OptimizerChoice, recipe_of
from .allocator import give_back, give_back_after_compiling, keep_memory
from .compiled import CompiledModel

__all__ = ["CompiledModel", "compile_model"]


def compile_model(
    model: str | Path | ModelProto | Onnxpp,
    *,
    loss: str | None = None,
    optimizer: str | Mapping[str, Any] | OptimizerChoice | None = None,
    learning_rate: float | None = None,
    recipe: Recipe | None = None,
    batch: int | None = None,
    microbatches: int = 1,
    precision: str | None = None,
    initialization: str | None = None,
    seed: int | None = None,
    allow_external: Iterable[str | Path] = (),
) -> CompiledModel:
    """A model ready to train and to predict in this process, on all its cores.

    model           an ONNX file, the path of one, or an imported model
    loss            "softmax_xent", "sigmoid_xent" or "mse", appended where the file has none; without a loss the model predicts
    optimizer       a name ("sgd", the default, "adam", ...) or a table of its hyper-parameters, as [optimizer] in a recipe
    learning_rate   the optimiser's default if left out
    recipe          everything about the training instead, a learning-rate schedule say; its data and its evaluation are not used
    batch           samples per step; left out: as many as come (every other number compiles once more)
    microbatches    parts that a batch is computed in, gradients adding up, to save memory
    precision       "float32" or "float64", of parameters, gradients and arithmetic
    initialization  "model" (the file's values), "he", "glorot", "lecun" or "zeros"
    seed            of initial values and dropout

    Compilation happens at the first step and the first prediction. On Linux glibc is told to keep freed memory, for this process
    and from now on (:func:`hpdlf.exec.allocator.keep_memory`): results of every step would otherwise cost fresh pages.

    Raises:
        ModelError: the file cannot be imported, or has no loss where one must be.
        PlanError: the optimiser or another choice does not exist, or the model has nothing to train.
        DataError: the file holds placeholders instead of weights.
    """
    chosen = _recipe(
        recipe,
        optimizer=optimizer,
        learning_rate=learning_rate,
        precision=precision,
        initialization=initialization,
        seed=seed,
    )
    keep_memory()
    allowed = tuple(allow_external)
    if isinstance(model, ModelProto):
        model = import_model("model.onnx", content=model.SerializeToString(), loss=loss, allow_external=allowed)
    elif isinstance(model, Onnxpp):
        if loss is not None and model.graph.loss is None:
            raise ModelError(
                f"{model.graph.name} was imported without a loss: import it with one, "
                f"hpdlf.import_model(path, loss={loss!r}), or give its path."
            )
    else:
        model = import_model(model, loss=loss, allow_external=allowed)
    net = CompiledModel(model, chosen, batch=batch, microbatches=microbatches)
    del model  # its weights have been copied
    give_back()
    if not net.trains:
        give_back_after_compiling()
    return net


def _recipe(recipe: Recipe | None, *, optimizer: Any, learning_rate: float | None, **fields: Any) -> Recipe:
    said = {
        name: v
        for name, v in {"optimizer": optimizer, "learning_rate": learning_rate, **fields}.items()
        if v is not None
    }
    if recipe is not None:
        if said:
            raise PlanError(f"A recipe says everything about the training: leave out {', '.join(said)}, or the recipe.")
        return recipe
    if isinstance(optimizer, OptimizerChoice):
        choice = optimizer.model_dump(exclude_none=True)
    else:
        choice = dict(optimizer) if isinstance(optimizer, Mapping) else {"name": optimizer or "sgd"}
    if learning_rate is not None:
        choice["learning_rate"] = learning_rate
    given = {name: v for name, v in fields.items() if v is not None}
    return recipe_of({"optimizer": choice, **given}, "This cannot be compiled, {problems}:")

"""What a role's RUN buffers hold before the first step: from model file, initialisation rule or checkpoint."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np
import optax

from ..models.onnxpp import Onnxpp, load_values
from ..models.plan import Recipe
from ..models.program import Program, Role
from .checkpoint import Checkpoint
from .initialization import initial_values
from .optimizer_state import packed_names, unpack

__all__ = ["constants_of", "first_contents", "parameter_name", "starting_values", "state_name", "trained_parameters"]


def parameter_name(tensor: str) -> str:
    """What a checkpoint calls a parameter."""
    return f"parameter/{tensor}"


def state_name(tensor: str) -> str:
    """What a checkpoint calls a tensor that forward passes replace."""
    return f"state/{tensor}"


def constants_of(model: Onnxpp, program: Program, role: Role) -> dict[str, np.ndarray]:
    """Values of the constants that the role's segments read."""
    stage = role.coordinates["pipeline"]
    return load_values(model, {c for s in program.segments.values() if s.stage == stage for c in s.constants})


def starting_values(
    model: Onnxpp, program: Program, role: Role, *, recipe: Recipe, precision: str, checkpoint: Checkpoint | None
) -> dict[str, np.ndarray]:
    """Parameters and state of the role's stage.

    Raises:
        RunError: the checkpoint has not all of them.
        DataError: the model file holds placeholders where the recipe wants its values.
    """
    segments = [s for s in program.segments.values() if s.stage == role.coordinates["pipeline"]]
    if checkpoint:
        names = {parameter_name(t): t for s in segments for t in s.parameters}
        names |= {state_name(t): t for s in segments for t in s.state}
        return {names[name]: value for name, value in checkpoint.read(names).items()}
    return initial_values(
        model.graph,
        [t for s in segments for t in (*s.parameters, *s.state)],
        initialization=recipe.initialization,
        seed=recipe.seed,
        load=lambda wanted: load_values(model, wanted),
        precision=precision,
    )


def trained_parameters(program: Program, role: Role) -> tuple[str, ...]:
    """The parameters that the role's optimiser updates, in the order of its buffers."""
    trained = [b for b in role.buffers if _is_trained(program, b.name)]
    return tuple(t for b in trained for t in b.tensors)


def first_contents(
    program: Program,
    role: Role,
    values: Mapping[str, np.ndarray],
    *,
    optimizer: optax.GradientTransformation,
    checkpoint: Checkpoint | None,
    shared: Any,
) -> dict[str, Any]:
    """Contents by RUN buffer. Constants have none: they are compiled into the segments.

    shared   the vector in memory that all ranks expose, where the role has one
    """
    contents: dict[str, Any] = {}
    for buffer in role.buffers:
        match buffer.name.partition(".")[0]:
            case "params" | "state":
                contents[buffer.name] = {t: jax.numpy.array(values[t]) for t in buffer.tensors}
            case "constants":
                contents[buffer.name] = None
            case "shared":
                contents[buffer.name] = shared
    if "optimizer" in role.buffer:
        held = {b: c for b, c in contents.items() if _is_trained(program, b)}
        trained = {t: array for arrays in held.values() for t, array in arrays.items()}
        contents["optimizer"] = _moments(optimizer.init(trained), trained, checkpoint)
    return contents


def _moments(fresh: Any, trained: Collection[str], checkpoint: Checkpoint | None) -> Any:
    if checkpoint is None:
        return fresh
    read = checkpoint.read(packed_names(fresh, trained))
    return jax.tree.map(jax.numpy.array, unpack(fresh, read, trained))


def _is_trained(program: Program, buffer: str) -> bool:
    kind, _, segment = buffer.partition(".")
    return kind == "params" and program.segments[segment].backward

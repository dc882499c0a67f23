"""An optax state as named arrays and back, so that a checkpoint does not depend on which stage held which parameter."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from ..errors import RunError

__all__ = ["pack", "packed_names", "unpack"]

OPTIMIZER = "opt"


def _leaf_names(state: Any, parameters: Collection[str]) -> tuple[list[str], list[Any], Any]:
    """``opt/<place in the state>/<parameter>`` for leaves that belong to a parameter, else ``opt/<place>``."""
    import jax

    leaves, tree = jax.tree_util.tree_flatten_with_path(state)
    names = []
    for path, _ in leaves:
        keys = [str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path]
        if isinstance(path[-1], jax.tree_util.DictKey) and keys[-1] not in parameters:
            raise AssertionError(f"the optimiser's state names {keys[-1]!r}, which is no parameter here")
        names.append("/".join((OPTIMIZER, *keys)))
    return names, [leaf for _, leaf in leaves], tree


def pack(state: Any, parameters: Collection[str]) -> dict[str, np.ndarray]:
    """An optax state over a dict of `parameters`, as named arrays.

    The places in the state depend on the recipe alone, so the shards of several stages add up to the whole state.
    Scalars (the number of updates) are the same on every stage and stand in every shard.
    """
    names, leaves, _ = _leaf_names(state, parameters)
    return {name: np.asarray(leaf) for name, leaf in zip(names, leaves, strict=True)}


def packed_names(template: Any, parameters: Collection[str]) -> tuple[str, ...]:
    """The names that :func:`unpack` wants for a state like `template`: what to read from a checkpoint."""
    return tuple(_leaf_names(template, parameters)[0])


def unpack(template: Any, tensors: Mapping[str, np.ndarray], parameters: Collection[str]) -> Any:
    """A state like `template` (of ``optimizer.init(parameters)``, or its shapes by ``jax.eval_shape``) with the values
    of `tensors`.

    Raises:
        RunError: a value is missing, or has another shape or type.
    """
    names, leaves, tree = _leaf_names(template, parameters)
    problems = []
    for name, leaf in zip(names, leaves, strict=True):
        if name not in tensors:
            problems.append(f"{name} is missing")
        elif tensors[name].shape != leaf.shape or tensors[name].dtype != leaf.dtype:
            problems.append(
                f"{name} is {tensors[name].dtype}{list(tensors[name].shape)} instead of {leaf.dtype}{list(leaf.shape)}"
            )
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise RunError(
            f"The checkpoint's optimiser state does not fit this plan: {'; '.join(problems[:5])}{more}. Resume with a "
            "plan of the same "
            "recipe, or train into a new folder (`--out`)."
        )
    return tree.unflatten([tensors[name] for name in names])

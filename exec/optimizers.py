"""From the recipe's optimiser and learning-rate schedule to optax.

Every rule works on each tensor by itself, so an update is the same wherever the tensors lie.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ..models.plan.recipe import OptimizerChoice, Recipe, Schedule

__all__ = ["learning_rate", "make_optimizer"]


def learning_rate(recipe: Recipe, *, total_steps: int, steps_per_epoch: int) -> Callable[[Any], Any]:
    """The rate at each step (from 0), as a function that JAX can trace.

    The warm-up is a factor on top of the schedule, so that the decay does not depend on it: at `warmup_steps` it is the
    whole rate.

    >>> recipe = Recipe(optimizer={"learning_rate": 1.0}, schedule={"name": "linear"})
    >>> rate = learning_rate(recipe, total_steps=4, steps_per_epoch=2)
    >>> [float(rate(step)) for step in range(5)]
    [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    peak = recipe.optimizer.hyperparameters["learning_rate"]
    schedule = recipe.schedule
    decay = _decay(schedule, peak, total_steps, steps_per_epoch)
    if not schedule.warmup_steps:
        return decay
    return lambda step: decay(step) * jnp.minimum(1.0, (step + 1) / schedule.warmup_steps)


def _decay(schedule: Schedule, peak: float, total_steps: int, steps_per_epoch: int) -> Callable[[Any], Any]:
    match schedule.name:
        case "constant":
            return optax.constant_schedule(peak)
        case "cosine":
            return optax.cosine_decay_schedule(peak, total_steps, alpha=schedule.final_fraction)
        case "linear":
            return optax.linear_schedule(peak, peak * schedule.final_fraction, total_steps)
        case "step":
            every = schedule.every_steps or (schedule.every_epochs or 1) * steps_per_epoch
            return optax.exponential_decay(peak, transition_steps=every, decay_rate=schedule.factor, staircase=True)


def make_optimizer(recipe: Recipe, *, total_steps: int, steps_per_epoch: int) -> optax.GradientTransformation:
    """The optax transformation for a flat dict {parameter name: array}.

    Its state's leaves are shaped like parameters and named by them, or are scalars, which are the same on every rank:
    so :func:`hpdlf.exec.checkpoint.pack` can name them and another number of stages can take them up.
    """
    rate = learning_rate(recipe, total_steps=total_steps, steps_per_epoch=steps_per_epoch)
    if recipe.schedule.name == "constant" and not recipe.schedule.warmup_steps:
        rate = recipe.optimizer.hyperparameters["learning_rate"]
    return optax.chain(*_clipping(recipe.optimizer), _rule(recipe.optimizer, rate))


def _rule(choice: OptimizerChoice, rate: Any) -> optax.GradientTransformation:
    values = choice.hyperparameters
    adam = {"b1": values.get("beta1"), "b2": values.get("beta2"), "eps": values.get("epsilon")}
    match choice.name:
        case "sgd":
            return optax.chain(*_l2(values), optax.sgd(rate))
        case "momentum":
            return optax.chain(*_l2(values), optax.sgd(rate, momentum=values["momentum"], nesterov=values["nesterov"]))
        case "adam":
            return optax.adam(rate, **adam)
        case "adamw":
            return optax.adamw(rate, **adam, weight_decay=values["weight_decay"])
        case "nadam":
            return optax.nadam(rate, **adam)
        case "amsgrad":
            return optax.amsgrad(rate, **adam)
        case "rmsprop":
            return optax.rmsprop(rate, decay=values["decay"], eps=values["epsilon"])
        case "adagrad":
            return optax.adagrad(rate, eps=values["epsilon"])
        case "lamb":
            return optax.lamb(rate, **adam, weight_decay=values["weight_decay"])
        case "lion":
            return optax.lion(rate, b1=values["beta1"], b2=values["beta2"], weight_decay=values["weight_decay"])


def _l2(values: dict[str, Any]) -> list[optax.GradientTransformation]:
    return [optax.add_decayed_weights(values["weight_decay"])] if values["weight_decay"] else []


def _clipping(choice: OptimizerChoice) -> list[optax.GradientTransformation]:
    rules = []
    if choice.clip_value is not None:
        rules.append(optax.clip(choice.clip_value))
    if choice.clip_tensor_norm is not None:
        rules.append(_clip_each(choice.clip_tensor_norm))
    return rules


def _clip_each(most: float) -> optax.GradientTransformation:
    """Scale each tensor's gradient down to norm `most` (optax offers the norm over all of them, or a mean square)."""

    def clip(gradient: jax.Array) -> jax.Array:
        norm = jnp.sqrt(jnp.sum(jnp.square(gradient)))
        return gradient * jnp.minimum(1.0, most / jnp.maximum(norm, jnp.finfo(gradient.dtype).tiny)).astype(
            gradient.dtype
        )

    return optax.stateless(lambda updates, _: jax.tree.map(clip, updates))

"""Updates and rates against their formulas."""

import doctest
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hpdlf.exec import optimizers
from hpdlf.exec.optimizers import learning_rate, make_optimizer
from hpdlf.models.plan.recipe import OPTIMIZERS, Recipe, state_copies


def test_doctests() -> None:
    assert doctest.testmod(optimizers).failed == 0


def first_update(gradient: np.ndarray, weight: np.ndarray, **optimizer: object) -> np.ndarray:
    transformation = make_optimizer(Recipe(optimizer=optimizer), total_steps=10, steps_per_epoch=5)  # type: ignore[arg-type]
    parameters = {"w": jnp.asarray(weight)}
    updates, _ = transformation.update({"w": jnp.asarray(gradient)}, transformation.init(parameters), parameters)
    return np.asarray(updates["w"])


G, W = np.array([0.5, -2.0, 3.0], "float32"), np.array([1.0, 2.0, -1.0], "float32")


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        ({"name": "sgd", "learning_rate": 0.1}, -0.1 * G),
        ({"name": "sgd", "learning_rate": 0.1, "weight_decay": 0.5}, -0.1 * (G + 0.5 * W)),
        ({"name": "momentum", "learning_rate": 0.1}, -0.1 * G),
        ({"name": "momentum", "learning_rate": 0.1, "nesterov": True}, -0.1 * 1.9 * G),
        ({"name": "adam", "learning_rate": 0.1}, -0.1 * np.sign(G)),
        ({"name": "adamw", "learning_rate": 0.1, "weight_decay": 0.5}, -0.1 * (np.sign(G) + 0.5 * W)),
        ({"name": "lion", "learning_rate": 0.1, "weight_decay": 0.0}, -0.1 * np.sign(G)),
        ({"name": "rmsprop", "learning_rate": 0.1}, -0.1 * np.sign(G) / math.sqrt(0.1)),
        ({"name": "sgd", "learning_rate": 1.0, "clip_value": 1.0}, -np.clip(G, -1, 1)),
        ({"name": "sgd", "learning_rate": 1.0, "clip_tensor_norm": 1.0}, -G / np.linalg.norm(G)),
        ({"name": "sgd", "learning_rate": 1.0, "clip_tensor_norm": 100.0}, -G),
    ],
)
def test_the_first_update_in_closed_form(optimizer: dict[str, object], expected: np.ndarray) -> None:
    np.testing.assert_allclose(first_update(G, W, **optimizer), expected, rtol=1e-5, atol=1e-6)


def test_a_zero_gradient_is_clipped_to_zero() -> None:
    assert first_update(np.zeros(3, "float32"), W, name="sgd", clip_tensor_norm=1.0).tolist() == [0, 0, 0]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_is_as_large_as_plans_count_on(name: str) -> None:
    transformation = make_optimizer(Recipe(optimizer={"name": name}), total_steps=10, steps_per_epoch=5)
    leaves = jax.tree.leaves(transformation.init({"w": jnp.zeros((10, 10))}))
    assert sum(leaf.size for leaf in leaves if leaf.size > 1) == state_copies(name) * 100


@pytest.mark.parametrize("name", ["momentum", "adam", "lamb", "lion"])
def test_every_optimizer_descends_a_bowl_wherever_its_tensors_lie(name: str) -> None:
    recipe = Recipe(optimizer={"name": name, "learning_rate": 0.01, "clip_tensor_norm": 1.0})
    transformation = make_optimizer(recipe, total_steps=10, steps_per_epoch=5)

    def train(parameters: dict[str, jnp.ndarray]) -> dict[str, jnp.ndarray]:
        state = transformation.init(parameters)
        step = jax.jit(transformation.update)
        for _ in range(20):
            updates, state = step(parameters, state, parameters)  # the gradient of |w|^2 / 2
            parameters = {k: w + updates[k] for k, w in parameters.items()}
        return parameters

    start = {"a": jnp.asarray(W), "b": jnp.asarray(G)}
    together = train(start)
    apart = {k: train({k: w})[k] for k, w in start.items()}
    for key, value in start.items():
        assert jnp.sum(together[key] ** 2) < jnp.sum(value**2)
        np.testing.assert_allclose(together[key], apart[key], rtol=1e-6)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({}, [1, 1, 1, 1, 1]),
        ({"name": "linear", "final_fraction": 0.2}, [1, 0.8, 0.6, 0.4, 0.2]),
        ({"name": "cosine"}, [(1 + math.cos(math.pi * s / 4)) / 2 for s in range(5)]),
        ({"name": "step", "every_epochs": 1, "factor": 0.5}, [1, 1, 0.5, 0.5, 0.25]),
        ({"name": "step", "every_steps": 3, "factor": 0.1}, [1, 1, 1, 0.1, 0.1]),
        ({"warmup_steps": 4}, [0.25, 0.5, 0.75, 1, 1]),
        ({"name": "linear", "warmup_steps": 2}, [0.5, 0.75, 0.5, 0.25, 0]),
    ],
)
def test_rates_in_closed_form(schedule: dict[str, object], expected: list[float]) -> None:
    recipe = Recipe(optimizer={"learning_rate": 1.0}, schedule=schedule)
    rate = learning_rate(recipe, total_steps=4, steps_per_epoch=2)
    np.testing.assert_allclose([float(rate(jnp.asarray(step))) for step in range(5)], expected, atol=1e-7)


def test_the_rate_is_counted_in_the_state() -> None:
    recipe = Recipe(optimizer={"name": "sgd", "learning_rate": 1.0}, schedule={"name": "linear"})
    transformation = make_optimizer(recipe, total_steps=4, steps_per_epoch=2)
    parameters = {"w": jnp.ones(1)}
    state, seen = transformation.init(parameters), []
    for _ in range(4):
        updates, state = transformation.update({"w": jnp.ones(1)}, state, parameters)
        seen.append(float(-updates["w"][0]))
    assert seen == [1.0, 0.75, 0.5, 0.25]

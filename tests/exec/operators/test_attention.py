"""Attention and rotary embeddings against onnxruntime, a closed form, and finite differences."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from onnx import helper

from hpdlf.exec.backend import Backend
from hpdlf.exec.operators import lowering, step_context
from hpdlf.models.onnxpp import Operator

Compare = Callable[..., list[np.ndarray]]


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("attributes", [{}, {"is_causal": 1}, {"scale": 0.3}, {"softcap": 2.0}])
@pytest.mark.parametrize("groups", [4, 2, 1])
def test_heads_that_share_keys(attributes: dict[str, Any], groups: int, like_onnxruntime: Compare) -> None:
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"], **attributes)
    given = {"q": normal(2, 4, 3, 8), "k": normal(2, groups, 5, 8, seed=1), "v": normal(2, groups, 5, 6, seed=2)}
    like_onnxruntime(node, given, opset=23)


def test_flat_heads_with_a_past(like_onnxruntime: Compare) -> None:
    node = helper.make_node(
        "Attention",
        ["q", "k", "v", "m", "pk", "pv"],
        ["y", "present_k", "present_v"],
        q_num_heads=4,
        kv_num_heads=2,
        is_causal=1,
    )
    given = {
        "q": normal(2, 3, 32),
        "k": normal(2, 3, 16, seed=1),
        "v": normal(2, 3, 16, seed=2),
        "m": normal(3, 7, seed=3),
        "pk": normal(2, 2, 4, 8, seed=4),
        "pv": normal(2, 2, 4, 8, seed=5),
    }
    like_onnxruntime(node, given, opset=23)


@pytest.mark.parametrize("shape", [(3, 5), (2, 1, 3, 5), (2, 4, 3, 5)])
def test_masks_of_truth_values(shape: tuple[int, ...], like_onnxruntime: Compare) -> None:
    mask = np.random.default_rng(0).integers(0, 2, shape).astype(bool)
    mask[..., 0] = True
    node = helper.make_node("Attention", ["q", "k", "v", "m"], ["y"])
    given = {"q": normal(2, 4, 3, 8), "k": normal(2, 4, 5, 8, seed=1), "v": normal(2, 4, 5, 8, seed=2), "m": mask}
    like_onnxruntime(node, given, opset=23)


def test_padded_keys_and_windows() -> None:
    q, k, v = normal(2, 1, 2, 4), normal(2, 1, 6, 4, seed=1), normal(2, 1, 6, 4, seed=2)
    kept = np.array([6, 3])
    node = helper.make_node("Attention", ["q", "k", "v", "", "", "", "n"], ["y"], is_causal=1, left_window_size=1)
    (y,) = Backend.run_node(node, [q, k, v, kept])
    for sample, count in enumerate(kept):
        for row in range(2):
            place = count - 2 + row
            seen = slice(max(place - 1, 0), place + 1)
            scores = q[sample, 0, row] @ k[sample, 0, seen].T / 2
            shares = np.exp(scores - scores.max())
            np.testing.assert_allclose(y[sample, 0, row], shares / shares.sum() @ v[sample, 0, seen], rtol=1e-5)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("attributes", [{}, {"is_causal": 1}, {"softcap": 2.0}])
def test_gradients(attributes: dict[str, Any], check_gradients: Callable[..., Any]) -> None:
    node = Operator(
        name="n", op_type="Attention", family="attention", inputs=("q", "k", "v"), outputs=("y",), attributes=attributes
    )
    context = step_context(seed=0, step=0, samples=np.arange(1))
    q, k, v = (normal(1, 2, 3, 4, seed=s).astype(np.float64) for s in range(3))
    function = lowering(node, 25)
    check_gradients(lambda *x: function(node, *x, context=context)[0], q, k, v)


def test_a_row_that_may_look_nowhere_is_zero_and_so_is_its_gradient() -> None:
    node = Operator(name="n", op_type="Attention", family="attention", inputs=("q", "k", "v", "m"), outputs=("y",))
    context = step_context(seed=0, step=0, samples=np.arange(1))
    mask = np.array([[True, True], [False, False]])
    function = lowering(node, 25)

    def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> Any:
        y = function(node, q, k, v, mask, context=context)[0]
        return jnp.sum(y**2), y

    given = [normal(1, 1, 2, 4, seed=s) for s in range(3)]
    gradients, y = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(*given)
    assert np.all(y[0, 0, 1] == 0)
    assert np.all(y[0, 0, 0] != 0)
    assert all(np.isfinite(g).all() for g in gradients)
    assert np.all(gradients[0][0, 0, 1] == 0)


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("turned", [0, 4])
@pytest.mark.parametrize("flat", [False, True])
def test_rotary_embeddings(interleaved: int, turned: int, flat: bool, like_onnxruntime: Compare) -> None:
    angles = normal(10, (turned or 8) // 2)
    given = {
        "x": normal(2, 3, 16) if flat else normal(2, 2, 3, 8),
        "cos": np.cos(angles),
        "sin": np.sin(angles),
        "p": np.array([[0, 1, 2], [7, 8, 9]]),
    }
    attributes = {"interleaved": interleaved, "rotary_embedding_dim": turned, "num_heads": 2}
    node = helper.make_node("RotaryEmbedding", list(given), ["y"], **attributes)
    like_onnxruntime(node, given, opset=23)


def test_no_query_is_an_empty_result() -> None:
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"], q_num_heads=2, kv_num_heads=2)
    keys = np.ones((1, 3, 8), np.float32)
    assert Backend.run_node(node, [keys[:, :0], keys, keys])[0].shape == (1, 0, 8)

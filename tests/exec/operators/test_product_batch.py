"""Batches of products and their gradients, in every way, and operands whose leading dims are broadcast."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from hpdlf.exec.operators import lowering, step_context
from hpdlf.exec.operators.product_batch import computed
from hpdlf.models.cost.lowerings import ProductBatch, ways
from hpdlf.models.onnxpp.graph import Operator

SHAPES = [(1, 3, 4, 5), (2, 7, 3, 5), (2, 1, 1, 1), (3, 33, 17, 64), (2, 1, 9, 4), (2, 8, 9, 1)]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("batch", "rows", "inner", "columns"), SHAPES)
@pytest.mark.parametrize("heads", [(), (1,), (2,)])
def test_every_way_is_a_product(batch: int, rows: int, inner: int, columns: int, heads: tuple[int, ...]) -> None:
    draw = np.random.default_rng(0).standard_normal
    a, b = draw((batch, *heads, rows, inner)), draw((batch, *heads, inner, columns))
    arrived = draw((batch, *heads, rows, columns))
    shape = ProductBatch(batch=batch, rows=rows, inner=inner, columns=columns)
    for direction, operands, wanted in (
        ("forward", (a, b), a @ b),
        ("left", (arrived, b), arrived @ np.swapaxes(b, -1, -2)),
        ("right", (a, arrived), np.swapaxes(a, -1, -2) @ arrived),
    ):
        for way in ways(shape, direction):
            found = jax.jit(computed(way, direction))(*operands)
            np.testing.assert_allclose(found, wanted, rtol=1e-11, atol=1e-11, err_msg=f"{direction} by {way}")


def ran(a: Any, b: Any, told: dict[str, str]) -> Any:
    node = Operator(name="m", op_type="MatMul", family="matmul", inputs=("a", "b"), outputs=("y",), lowering=told)
    return lowering(node, 20)(node, a, b, context=step_context(0, 0, np.arange(1)))[0]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("told", [{}, {"forward": "turned", "left": "turned", "right": "turned"}, {"right": "swapped"}])
@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((2, 3, 4, 5), (2, 3, 5, 6)),
        ((2, 1, 4, 5), (1, 3, 5, 6)),
        ((2, 3, 4, 5), (3, 5, 6)),
        ((4, 5), (2, 5, 6)),
        ((1, 4, 5), (1, 5, 6)),
        ((2, 0, 4, 5), (2, 0, 5, 6)),
        ((5,), (2, 5, 6)),
    ],
    ids=lambda dims: "x".join(map(str, dims)),
)
def test_a_node_is_numpys_product_with_its_gradients(
    a: tuple[int, ...], b: tuple[int, ...], told: dict[str, str]
) -> None:
    """Where leading dims differ there is no choice, and what a hint says of equal ones does no harm."""
    draw = np.random.default_rng(0).standard_normal
    x, w = draw(a), draw(b)
    y, backward = jax.vjp(lambda x, w: ran(x, w, told), x, w)
    np.testing.assert_allclose(y, x @ w, rtol=1e-12)
    _, plain = jax.vjp(jax.numpy.matmul, x, w)
    for found, wanted in zip(backward(y), plain(y), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-11, atol=1e-11)

"""The product of a linear layer and its gradient, whichever operand is the narrower."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hpdlf.exec.operators.linear import WIDE, linear, over_rows

SHAPES = [(3, 5), (5, 3), (4, 4), (WIDE, WIDE + 1), (WIDE + 1, WIDE)]


@pytest.mark.parametrize(("wide", "result"), SHAPES)
@pytest.mark.parametrize("transposed", [False, True])
def test_the_gradient_is_that_of_a_product(wide: int, result: int, transposed: bool) -> None:
    draw = np.random.default_rng(0).standard_normal
    with jax.enable_x64(True):
        x, w = jnp.asarray(draw((2, 3, wide))), jnp.asarray(draw((result, wide) if transposed else (wide, result)))
        arrived = jnp.asarray(draw((2, 3, result)))
        y, backward = jax.vjp(lambda x, w: linear(x, w, transposed), x, w)
        expected, plain = jax.vjp(lambda x, w: x @ (w.T if transposed else w), x, w)
        np.testing.assert_allclose(y, expected, rtol=1e-12)
        for found, wanted in zip(backward(arrived), plain(arrived), strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("columns", [(WIDE, 4 * WIDE), (4 * WIDE, WIDE)])
def test_no_product_gathers_a_wide_left_operand(columns: tuple[int, int]) -> None:
    a, b = (jax.ShapeDtypeStruct((64, n), np.float32) for n in columns)
    text = jax.jit(over_rows).lower(a, b).compile().as_text()
    assert re.findall(r" dot\(.*lhs_contracting_dims=\{(\d)\}", text) == ["1"]

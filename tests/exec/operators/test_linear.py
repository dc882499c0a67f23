"""The product of a linear layer and its gradients, in every way, whichever operand is the narrower."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hpdlf.errors import ModelError
from hpdlf.exec.operators import lowering, step_context
from hpdlf.exec.operators.linear import computed, linear, over_rows
from hpdlf.models.cost.lowerings import Linear, ways
from hpdlf.models.cost.lowerings_product import LINEARS, WIDE, over_rows_way
from hpdlf.models.onnxpp.graph import Operator

SHAPES = [
    (6, 3, 5),
    (6, 5, 3),
    (6, 4, 4),
    (1, 7, 3),
    (1, 1, 1),
    (300, WIDE, WIDE + 1),
    (300, WIDE + 1, WIDE),
    (300, 129, 2),
]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("rows", "wide", "result"), SHAPES)
def test_every_way_is_a_product(rows: int, wide: int, result: int, transposed: bool) -> None:
    draw = np.random.default_rng(0).standard_normal
    x, arrived = draw((rows, wide)), draw((rows, result))
    w = draw((result, wide) if transposed else (wide, result))
    straight = w.T if transposed else w
    into_w = x.T @ arrived
    shape = Linear(rows=rows, wide=wide, result=result, transposed=transposed)
    for direction, (a, b), wanted in (
        ("forward", (x, w), x @ straight),
        ("input", (arrived, w), arrived @ straight.T),
        ("weight", (x, arrived), into_w.T if transposed else into_w),
    ):
        for way in ways(shape, direction):
            found = jax.jit(computed(way, direction, shape))(a, b)
            np.testing.assert_allclose(found, wanted, rtol=1e-11, atol=1e-11, err_msg=f"{direction} by {way}")


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("chosen", [("xla", "xla", "xla"), ("swapped", "swapped", "swapturned")])
def test_the_gradient_is_that_of_a_product(chosen: tuple[str, str, str], transposed: bool) -> None:
    draw = np.random.default_rng(0).standard_normal
    x, w = jnp.asarray(draw((2, 3, 5))), jnp.asarray(draw((4, 5) if transposed else (5, 4)))
    arrived = jnp.asarray(draw((2, 3, 4)))
    y, backward = jax.vjp(lambda x, w: linear(x, w, transposed, chosen), x, w)
    expected, plain = jax.vjp(lambda x, w: x @ (w.T if transposed else w), x, w)
    np.testing.assert_allclose(y, expected, rtol=1e-12)
    for found, wanted in zip(backward(arrived), plain(arrived), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-12)


def node(op_type: str = "Gemm", lowering: dict[str, str] | None = None, **attributes: Any) -> Operator:
    return Operator(
        name="g",
        op_type=op_type,
        family="matmul",
        inputs=("x", "w"),
        outputs=("y",),
        attributes=attributes,
        lowering=lowering or {},
    )


def ran(operator: Operator, *operands: Any) -> Any:
    return lowering(operator, 20)(operator, *operands, context=step_context(0, 0, np.arange(1)))[0]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("turned", [{}, {"transA": 1}, {"transB": 1}, {"transA": 1, "transB": 1, "alpha": 0.5}])
def test_a_node_computes_its_hints(turned: dict[str, Any]) -> None:
    draw = np.random.default_rng(0).standard_normal
    x, w = draw((5, 3) if "transA" in turned else (3, 5)), draw((4, 5) if "transB" in turned else (5, 4))
    shape = Linear(rows=3, wide=5, result=4, transposed="transB" in turned)
    for number in range(4):
        told = {d: (ways(shape, d) * 4)[number] for d in LINEARS.directions}
        y, backward = jax.vjp(lambda x, w, told=told: ran(node(lowering=told, **turned), x, w), x, w)  # type: ignore[misc]
        wanted, plain = jax.vjp(
            lambda x, w: (
                turned.get("alpha", 1) * (x.T if "transA" in turned else x) @ (w.T if "transB" in turned else w)
            ),
            x,
            w,
        )
        np.testing.assert_allclose(y, wanted, rtol=1e-12)
        for found, right in zip(backward(y), plain(y), strict=True):
            np.testing.assert_allclose(found, right, rtol=1e-11, atol=1e-12)


def test_a_hint_that_cannot_compute_the_shape_is_refused() -> None:
    hinted = node("MatMul", {"forward": "swapped"})
    with pytest.raises(
        ModelError, match="MatMul node 'g': its forward lowering 'swapped' cannot compute linear 3x5 to 4"
    ):
        ran(hinted, np.zeros((3, 5), np.float32), np.zeros((5, 4), np.float32))


@pytest.mark.parametrize(("rows", "columns"), [(64, (WIDE, 4 * WIDE)), (512, (4 * WIDE, WIDE)), (64, (4 * WIDE, WIDE))])
def test_no_product_gathers_a_wide_left_operand(rows: int, columns: tuple[int, int]) -> None:
    a, b = (jax.ShapeDtypeStruct((rows, n), np.float32) for n in columns)
    text = jax.jit(over_rows).lower(a, b).compile().as_text()
    assert re.findall(r" dot\(.*lhs_contracting_dims=\{(\d)\}", text) == ["1"]


def test_with_few_rows_no_result_is_transposed() -> None:
    assert over_rows_way(8, 2048, 1000) == "turned"
    assert over_rows_way(2048, 2048, 512) == "swapturned"
    assert over_rows_way(1024, 768, 2) == "swapped"
    assert over_rows_way(1024, 64, 64) == "xla"

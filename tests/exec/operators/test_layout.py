"""Pictures with channels last: what keeps them so, and what is computed is the same."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hpdlf.exec.operators import lowering, step_context
from hpdlf.exec.operators.chosen import way_of
from hpdlf.exec.operators.interpret import interpret
from hpdlf.exec.operators.layout import ChannelsLast, channel_sums, channels_first, largest_divisor, plus_channels
from hpdlf.models.cost.lowerings import Convolution, Processor, expected_way
from hpdlf.models.onnxpp import Operator

SHAPE = (2, 3, 8, 10)


def node(op_type: str, inputs: tuple[str, ...], outputs: tuple[str, ...] = (), **attributes: Any) -> Operator:
    return Operator(
        name=op_type.lower() + "".join(outputs),
        op_type=op_type,
        family="elementwise",
        inputs=inputs,
        outputs=outputs or (f"{op_type}.out",),
        attributes=attributes,
    )


CHAIN = (
    node("Conv", ("x", "w"), ("c",), pads=(1, 1, 1, 1)),
    node("BatchNormalization", ("c", "scale", "shift", "mean", "variance"), ("n", "m", "v"), training_mode=1),
    node("Mul", ("n", "by_channel"), ("s",)),
    node("Relu", ("s",), ("r",)),
    node("MaxPool", ("r",), ("p",), kernel_shape=(3, 3), pads=(1, 1, 1, 1)),
    node("Conv", ("p", "w2", "scale"), ("d",), pads=(1, 1, 1, 1)),
    node("Add", ("d", "r"), ("a",)),
    node("Concat", ("a", "r"), ("j",), axis=1),
    node("AveragePool", ("j",), ("y",), kernel_shape=(2, 2)),
)


def values() -> dict[str, jax.Array]:
    draw = np.random.default_rng(0)
    shapes = {"x": SHAPE, "w": (4, 3, 3, 3), "w2": (4, 4, 3, 3), "by_channel": (4, 1, 1)}
    shapes |= dict.fromkeys(("scale", "shift", "mean", "variance"), (4,))
    return {name: jnp.asarray(1 + draw.random(shape)) for name, shape in shapes.items()}


def chain(given: dict[str, jax.Array], *, one_by_one: bool = False) -> jax.Array:
    context = step_context(seed=0, step=0, samples=np.arange(SHAPE[0]))
    known: dict[str, Any] = dict(given)
    steps = [(operator, lowering(operator, 20)) for operator in CHAIN]
    for part in [[step] for step in steps] if one_by_one else [steps]:
        interpret(part, known, context, {})
    return known["y"]


@pytest.mark.usefixtures("x64")
def test_a_chain_computes_what_its_operators_compute_one_by_one() -> None:
    def total(given: dict[str, jax.Array], one_by_one: bool) -> tuple[jax.Array, jax.Array]:
        y = chain(given, one_by_one=one_by_one)
        return jnp.sin(y).sum(), y

    run = jax.jit(jax.value_and_grad(total, has_aux=True), static_argnums=1)
    ((_, y), found), ((_, each), wanted) = (run(values(), one_by_one) for one_by_one in (False, True))
    np.testing.assert_allclose(y, each, rtol=1e-12)
    for name in ("x", "w", "w2", "scale", "shift", "by_channel"):
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="on other devices XLA chooses layouts")
def test_pictures_are_transposed_where_the_chain_begins_and_ends_and_nowhere_else() -> None:
    text = jax.jit(chain).lower(values()).as_text()
    turned = [dims for dims in re.findall(r"transpose .*?-> tensor<([\dx]+)xf", text) if dims.startswith("2x")]
    assert sorted(turned) == ["2x8x10x3", "2x8x7x9"]


def test_operators_that_know_no_layout_get_onnx_order() -> None:
    steps = (CHAIN[0], node("ReduceSum", ("c", "axes"), ("y",)), node("Transpose", ("c",), ("t",), perm=(0, 2, 3, 1)))

    @jax.jit
    def run(given: dict[str, jax.Array]) -> dict[str, jax.Array]:
        known: dict[str, Any] = {**given, "axes": np.array([2])}
        context = step_context(seed=0, step=0, samples=np.arange(SHAPE[0]))
        interpret([(operator, lowering(operator, 20)) for operator in steps], known, context, {})
        return {name: known[name] for name in ("c", "y", "t")}

    known = run(values())
    assert known["c"].shape == (2, 4, 8, 10)
    np.testing.assert_allclose(known["y"], known["c"].sum(2, keepdims=True), rtol=1e-6)
    np.testing.assert_array_equal(known["t"], np.moveaxis(known["c"], 1, -1))


@pytest.mark.parametrize("shape", [(4,), (3, 4), (1, 5, 4), (17, 3, 4), (32, 2, 2, 4)])
def test_channel_sums_are_sums_over_all_but_channels(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).random((*shape[:-1], 4)) if len(shape) > 1 else np.ones((6, 4))

    @jax.jit
    def run(x: jax.Array, b: jax.Array) -> tuple[jax.Array, ...]:
        into_x = jax.grad(lambda x: (channel_sums(x) * jnp.arange(4)).sum())(x)
        return channel_sums(x), into_x, jax.grad(lambda b: plus_channels(x, b).sum())(b)

    sums, into_x, into_b = run(x, np.zeros(4))
    np.testing.assert_allclose(sums, x.reshape(-1, 4).sum(0), rtol=1e-6)
    np.testing.assert_allclose(into_x, np.broadcast_to(np.arange(4), x.shape))
    np.testing.assert_allclose(into_b, np.full(4, x.size / 4))


def test_sums_in_16_bits_are_added_up_in_32() -> None:
    x = jnp.full((64, 64, 2), 1, jnp.float16)
    np.testing.assert_array_equal(channel_sums(x), [4096, 4096])
    assert channel_sums(x).dtype == jnp.float16


def test_parts_divide() -> None:
    assert [largest_divisor(n) for n in (1, 2, 13, 16, 17, 32, 60, 112)] == [1, 2, 13, 16, 1, 16, 15, 16]
    assert [largest_divisor(56, most) for most in (0, 1, 7, 13, 100)] == [1, 1, 7, 8, 56]


def test_convolutions_in_16_bits_add_up_inside_products() -> None:
    """Winograd's tiles and sums of shifted pictures would round between."""
    conv = Convolution(
        samples=1,
        channels=64,
        filters=64,
        groups=1,
        size=(64, 64),
        kernel=(3, 3),
        strides=(1, 1),
        dilations=(1, 1),
        pads=((1, 1),) * 2,
        output=(64, 64),
    )
    operator = node("Conv", ("x", "w"))
    assert way_of(operator, conv, "forward").startswith("winograd")
    assert way_of(operator, conv, "forward", jnp.bfloat16) == "xla"
    assert expected_way(conv, "forward", Processor(kind="gpu")) == "xla"
    draw = np.random.default_rng(0)
    x, w = (jnp.asarray(draw.standard_normal(s), jnp.float16) for s in ((1, 64, 16, 16), (64, 64, 3, 3)))
    context = step_context(seed=0, step=0, samples=np.arange(1))
    run = jax.jit(lambda x, w: lowering(operator, 20)(operator, x, w, context=context)[0])
    half, single = run(x, w), run(x.astype(jnp.float32), w.astype(jnp.float32))
    np.testing.assert_allclose(half, single, rtol=2e-3, atol=5e-2)


def test_a_picture_says_its_shape_as_onnx_counts() -> None:
    picture = ChannelsLast(jnp.zeros((2, 8, 10, 3)))
    assert (picture.shape, picture.ndim) == (SHAPE, 4)
    assert channels_first(picture).shape == SHAPE

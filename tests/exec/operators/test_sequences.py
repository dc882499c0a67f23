"""Sequences, optionals, and the forms of If, Loop and Scan that run on the host."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, parser

from hpdlf.errors import ModelError
from hpdlf.exec.backend import Backend
from hpdlf.exec.operators import registered, step_context
from hpdlf.exec.operators.interpret import run_body
from hpdlf.models.onnxpp.bodies import body_of
from hpdlf.models.onnxpp.host import HOST, on_host

HEADER = '<ir_version: 10, opset_import: ["" : 21]>'


def run(text: str, *values: Any) -> tuple[Any, ...]:
    return Backend.prepare(parser.parse_model(HEADER + text)).run(list(values))


def one(op: str, *values: Any, opset: int = 21, **attributes: Any) -> Any:
    names = [f"x{i}" for i in range(len(values))]
    return Backend.run_node(helper.make_node(op, names, ["y"], **attributes), list(values), opset_version=opset)[0]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 9), max_size=5), st.data())
def test_sequences_are_lists(items: list[int], data: st.DataObject) -> None:
    sequence = [np.array([i]) for i in items]
    at = data.draw(st.integers(-len(items), len(items)))
    expected = list(items)
    expected.insert(at if at >= 0 else len(items) + at, 10)
    assert [int(v[0]) for v in one("SequenceInsert", sequence, np.array([10]), np.array(at))] == expected
    assert one("SequenceLength", sequence) == len(items)
    if items:
        at = data.draw(st.integers(-len(items), len(items) - 1))
        assert one("SequenceAt", sequence, np.array(at)) == items[at]
        del items[at]
        assert [int(v[0]) for v in one("SequenceErase", sequence, np.array(at))] == items


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9), st.integers(1, 4), st.integers(-2, 1))
def test_split_and_concatenated_is_the_same(size: int, step: int, axis: int) -> None:
    x = np.arange(size * 3).reshape((size, 3) if axis in (0, -2) else (3, size))
    parts = one("SplitToSequence", x, np.array(step), axis=axis)
    assert [p.shape[axis] for p in parts[:-1]] == [step] * (len(parts) - 1)
    np.testing.assert_array_equal(one("ConcatFromSequence", parts, axis=axis), x)


@pytest.mark.parametrize(
    ("op", "values", "words"),
    [
        ("SequenceAt", ([np.zeros(1)], np.array(1)), "position 1 in a sequence of 1 tensors"),
        ("SequenceErase", ([], np.array(-1)), "position -1 in a sequence of 0 tensors"),
        ("SequenceInsert", ([], np.zeros(1), np.array(2)), "position 2 in a sequence of 0 tensors"),
        ("ConcatFromSequence", ([],), "an empty sequence"),
        ("SplitToSequence", (np.zeros(3), np.array([1, 1])), r"lengths \[1, 1\], but axis 0 has 3"),
        ("SplitToSequence", (np.zeros(3), np.array(0)), "pieces of length 0"),
        ("OptionalGetElement", (None,), "empty optional"),
    ],
)
def test_what_is_not_there_is_refused(op: str, values: tuple[Any, ...], words: str) -> None:
    attributes = {"axis": 0} if op == "ConcatFromSequence" else {}
    with pytest.raises(ModelError, match=words):
        one(op, *values, **attributes)


def test_a_sequence_of_known_length_is_compiled_and_passes_gradients_on() -> None:
    model = parser.parse_model(
        HEADER
        + """g (float[6] x, float[2] w) => (float[4] y) {
            two = Constant<value_int: int = 2>()
            first = Constant<value_int: int = 0>()
            parts = SplitToSequence(x, two)
            rest = SequenceErase(parts, first)
            more = SequenceInsert(rest, w, first)
            again = SequenceErase(more)
            y = ConcatFromSequence<axis = 0>(again)
        }"""
    )
    body = body_of(model.graph, {"": 21})
    context = step_context(seed=0, step=0, samples=np.arange(1))

    def total(x: jax.Array, w: jax.Array) -> jax.Array:
        (y,) = run_body(body, (x, w), {}, context)
        return jnp.sum(y * jnp.arange(1.0, 5.0))

    dx, dw = jax.jit(jax.grad(total, argnums=(0, 1)))(jnp.ones(6), jnp.ones(2))
    assert dx.tolist() == [0, 0, 3, 4, 0, 0]
    assert dw.tolist() == [1, 2]


def test_a_graph_for_each_tensor_of_sequences() -> None:
    text = """g (seq(float[N]) s, seq(float[N]) t, float[1] u) => (seq(float[N]) y) {
        y = SequenceMap <body = each (float[N] a, float[N] b, float[1] c) => (float[N] d) {
            e = Mul(a, b)
            d = Add(e, c)
        }> (s, t, u)
    }"""
    s, t = [np.float32([1, 2]), np.float32([3])], [np.float32([4, 5]), np.float32([6])]
    (y,) = run(text, s, t, np.float32([10]))
    assert [v.tolist() for v in y] == [[14, 20], [28]]
    with pytest.raises(ModelError, match="sequences of 2 and 1 tensors"):
        run(text, s, t[:1], np.float32([10]))


def test_a_loop_that_grows_what_it_carries() -> None:
    text = """g (int64 n, float[A] x) => (float[B] y, float[C, 1] last) {
        yes = Constant<value = bool {1}>()
        y, last = Loop <body = round (int64 i, bool on, float[A] v) => (bool again, float[B] w, float[1] seen) {
            again = Identity(on)
            w = Concat<axis = 0>(v, v)
            k = Cast<to = 1>(i)
            zero = Constant<value_ints = [0]>()
            seen = Unsqueeze(k, zero)
        }> (n, yes, x)
    }"""
    y, last = run(text, np.int64(4), np.float32([1, 2]))
    assert y.tolist() == [1, 2] * 16
    assert last.tolist() == [[0], [1], [2], [3]]
    y, last = run(text, np.int64(0), np.float32([1, 2]))
    assert y.tolist() == [1, 2]
    assert last.shape == (0, 1)
    assert last.dtype == np.float32


def test_a_loop_as_long_as_data_ask_for_stacks_its_results() -> None:
    text = """g (float limit) => (float y, float[N] seen) {
        yes = Constant<value = bool {1}>()
        start = Constant<value_float = 1.0>()
        two = Constant<value_float = 2.0>()
        y, seen = Loop <body = round (int64 i, bool on, float v) => (bool again, float w, float u) {
            w = Mul(v, two)
            u = Identity(v)
            again = Less(w, limit)
        }> (, yes, start)
    }"""
    y, seen = run(text, np.float32(20))
    assert (y, seen.tolist()) == (32, [1, 2, 4, 8, 16])


def test_shapes_that_change_from_round_to_round_cannot_be_stacked() -> None:
    text = """g (int64 n, float[A] x) => (float[B] y, float[C, D] all) {
        yes = Constant<value = bool {1}>()
        y, all = Loop <body = round (int64 i, bool on, float[A] v) => (bool again, float[B] w, float[B] u) {
            again = Identity(on)
            w = Concat<axis = 0>(v, v)
            u = Identity(w)
        }> (n, yes, x)
    }"""
    with pytest.raises(ModelError, match=r"'u', whose shape changes from round to round: \(2,\) and \(4,\)"):
        run(text, np.int64(2), np.float32([1]))


def test_a_loop_that_carries_a_sequence_through_data() -> None:
    text = """g (float[N] x, int64 n) => (float[M] y) {
        yes = Constant<value = bool {1}>()
        empty = SequenceEmpty()
        s = Loop <body = round (int64 i, bool on, seq(float[K]) t) => (bool again, seq(float[K]) u) {
            again = Identity(on)
            k = Cast<to = 1>(i)
            v = Mul(x, k)
            u = SequenceInsert(t, v)
        }> (n, yes, empty)
        y = ConcatFromSequence<axis = 0>(s)
    }"""
    (y,) = run(text, np.float32([1, 2]), np.int64(3))
    assert y.tolist() == [0, 0, 1, 2, 2, 4]


def test_scans_over_what_has_no_shape_before_the_run() -> None:
    text = """g (float[1] s, float[T, N] x) => (float[1] t, int64[T] y) {
        t, y = Scan <num_scan_inputs = 1, scan_input_directions = [1], body = row (float[1] a, float[N] r) => (float[1] b, int64 c) {
            z = NonZero(r)
            d = Shape(z)
            one = Constant<value_ints = [1]>()
            e = Gather(d, one)
            c = Squeeze(e)
            f = Cast<to = 1>(e)
            b = Add(a, f)
        }> (s, x)
    }"""
    t, y = run(text, np.float32([0.5]), np.float32([[1, 0, 2], [0, 0, 0], [1, 1, 1]]))
    assert t.tolist() == [5.5]
    assert y.tolist() == [3, 0, 2]


def test_scans_of_several_lengths() -> None:
    body = parser.parse_graph("row (float a, float r) => (float b, float c) { b = Add(a, r)\n c = Identity(b) }")
    node = helper.make_node("Scan", ["n", "s", "x"], ["t", "y"], num_scan_inputs=1, body=body)
    values = [np.int64([3, 1]), np.float32([0, 10]), np.float32([[1, 2, 3], [4, 5, 6]])]
    t, y = Backend.run_node(node, values, opset_version=8)
    assert t.tolist() == [6, 14]
    assert y.tolist() == [[1, 3, 6], [14, 0, 0]]


def test_branches_that_give_sequences_or_nothing() -> None:
    text = """g (bool c, float[N] x) => (seq(float[N]) y) {
        y = If (c) <
            then_branch = yes () => (seq(float[N]) s) { s = SequenceConstruct(x, x) },
            else_branch = no () => (seq(float[N]) s) { s = SequenceEmpty() }
        >
    }"""
    (y,) = run(text, np.array(True), np.float32([1]))
    assert [v.tolist() for v in y] == [[1], [1]]
    assert run(text, np.array(False), np.float32([1])) == ([],)


def test_optionals() -> None:
    node = helper.make_node("Optional", [], ["y"], type=helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    assert Backend.run_node(node, []) == (None,)
    assert one("Optional", np.float32([1])).tolist() == [1]
    assert one("OptionalHasElement", None).tolist() is False
    assert one("OptionalHasElement", [np.zeros(1)]).tolist() is True
    assert one("OptionalGetElement", [np.ones(1)])[0].tolist() == [1]


@pytest.mark.parametrize("domain", HOST)
def test_the_table_of_host_operators_is_what_is_registered(domain: str) -> None:
    assert HOST[domain] == set(registered(domain, host=True))


def test_operators_on_the_host_are_known_by_name() -> None:
    assert on_host("NonZero", "ai.onnx")
    assert not on_host("TreeEnsemble", "ai.onnx.ml")


def compiled(text: str, *values: Any) -> tuple[Any, ...]:
    """Runs a graph, and demands that no operator of it was run on the host."""
    prepared = Backend.prepare(parser.parse_model(HEADER + text))
    results = prepared.run(list(values))
    assert not prepared._runner.on_host
    return results


GROWING = """g (float[A] x) => (float[B] y) {
    n = Constant<value_int = %d>()
    yes = Constant<value = bool {1}>()
    y = Loop <body = round (int64 i, bool on, float[A] v) => (bool again, float[B] w) {
        again = Identity(on)
        w = Concat<axis = 0>(v, x)
    }> (n, yes, x)
}"""


def test_loops_that_change_shapes_are_compiled_where_they_are_short() -> None:
    (y,) = compiled(GROWING % 20, np.float32([1, 2]))
    assert y.tolist() == [1, 2] * 21
    (y,) = run(GROWING % 70, np.float32([1, 2]))
    assert y.tolist() == [1, 2] * 71


def test_a_loop_takes_the_steps_of_a_sequence_by_number() -> None:
    text = """g (float[20, 2] x) => (float[2] y) {
        n = Constant<value_int = 20>()
        yes = Constant<value = bool {1}>()
        zeros = Constant<value_floats = [0.0, 0.0]>()
        s = SplitToSequence<keepdims = 0>(x)
        y = Loop <body = round (int64 i, bool on, float[2] v) => (bool again, float[2] w) {
            again = Identity(on)
            row = SequenceAt(s, i)
            w = Add(v, row)
        }> (n, yes, zeros)
    }"""
    x = np.arange(40, dtype=np.float32).reshape(20, 2)
    np.testing.assert_array_equal(compiled(text, x)[0], x.sum(0))


@pytest.mark.parametrize("op", ["Loop", "Scan"])
def test_a_shape_from_around_a_loop_becomes_known(op: str) -> None:
    loop = """y, z = Loop <body = round (int64 i, bool on, float[A] v) => (bool again, float[A] w, float[B, C] u) {
            again = Identity(on)
            w = Add(v, v)
            u = Reshape(v, shape)
        }> (n, yes, x)"""
    scan = """y, z = Scan <num_scan_inputs = 1, body = round (float[A] v, float r) => (float[A] w, float[B, C] u) {
            w = Add(v, v)
            u = Reshape(v, shape)
        }> (x, rows)"""
    text = f"""g (float[A] x, int64[2] shape, float[12] rows) => (float[A] y, float[D, B, C] z) {{
        n = Constant<value_int = 12>()
        yes = Constant<value = bool {{1}}>()
        {loop if op == "Loop" else scan}
    }}"""
    y, z = compiled(text, np.ones(6, np.float32), np.int64([2, 3]), np.zeros(12, np.float32))
    assert y.tolist() == [4096.0] * 6
    assert z.shape == (12, 2, 3)


def test_a_loop_without_end_is_refused() -> None:
    text = """g (float x) => (float y) {
        y = Loop <body = round (int64 i, bool on, float v) => (bool again, float w) {
            again = Identity(on)
            w = Add(v, v)
        }> (, , x)
    }"""
    with pytest.raises(ModelError, match="never ends"):
        run(text, np.float32(1))


def test_a_loop_that_data_end_passes_gradients_on() -> None:
    model = parser.parse_model(
        HEADER
        + """g (float x, float w) => (float y) {
            n = Constant<value_int: int = 30>()
            yes = Constant<value: tensor = bool {1}>()
            ten = Constant<value_float: float = 10.0>()
            y = Loop <body: graph = round (int64 i, bool on, float v) => (bool again, float u) {
                u = Mul(v, w)
                again = Less(u, ten)
            }> (n, yes, x)
        }"""
    )
    body = body_of(model.graph, {"": 21})
    context = step_context(seed=0, step=0, samples=np.arange(1))
    function = jax.jit(jax.value_and_grad(lambda x, w: run_body(body, (x, w), {}, context)[0], argnums=(0, 1)))
    y, (dx, dw) = function(jnp.float32(1), jnp.float32(2))
    assert (y, dx, dw) == (16, 16, 4 * 8)


def test_rounds_of_a_scan_draw_numbers_of_their_own() -> None:
    text = """g (float[1] s, float[5, 3] x) => (float[1] t, float[5, 3] y) {
        t, y = Scan <num_scan_inputs = 1, body = row (float[1] a, float[3] r) => (float[1] b, float[3] c) {
            b = Identity(a)
            c = RandomUniformLike(r)
        }> (s, x)
    }"""
    _, y = compiled(text, np.zeros(1, np.float32), np.zeros((5, 3), np.float32))
    assert np.unique(y).size == 15

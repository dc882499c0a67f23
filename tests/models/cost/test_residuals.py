import pytest

from hpdlf.models.cost import residual_bytes, residual_tensors, workspace_bytes
from hpdlf.models.onnxpp import Dim, Graph, Operator, Tensor


def graph(*operators: tuple[str, str, str, str], shapes: dict[str, tuple[int, ...]], parameters: str = "w") -> Graph:
    """Operators (type, family, operands as letters, result); a leading 0 in a shape is the batch."""
    tensors = {
        n: Tensor(name=n, dtype="float32", shape=tuple(Dim(per_sample=1) if d == 0 else Dim(d) for d in s))
        for n, s in shapes.items()
    }
    made = tuple(
        Operator(name=f"{t}_{out}", op_type=t, family=f, inputs=tuple(ins), outputs=(out,))
        for t, f, ins, out in operators
    )
    return Graph(
        name="g", opset=20, operators=made, tensors=tensors, inputs=("x",), targets=(), outputs=(made[-1].outputs[0],),
        loss="z", parameters=tuple(parameters), state={}, constants=(),
    )  # fmt: skip


def names(of: Graph) -> list[str]:
    return [o.name for o in of.operators]


CHAIN = graph(
    ("MatMul", "matmul", "xw", "m"),
    ("Relu", "elementwise", "m", "r"),
    ("Flatten", "view", "r", "f"),
    ("MatMul", "matmul", "fv", "z"),
    shapes={"x": (0, 6), "w": (6, 5), "m": (0, 5), "r": (0, 5), "f": (0, 5), "v": (5, 2), "z": (0, 2)},
    parameters="wv",
)


def test_operands_of_products_and_results_of_activations_each_once() -> None:
    # x for dw; r for relu and, seen through the view, for dv.
    assert residual_tensors(CHAIN, names(CHAIN)) == ("x", "r")
    assert residual_bytes(CHAIN, names(CHAIN), batch=3) == 4 * 3 * (6 + 5)
    assert residual_bytes(CHAIN, names(CHAIN), batch=3, precision="bfloat16") == 2 * 3 * (6 + 5)
    assert residual_bytes(CHAIN, names(CHAIN), batch=3, precision="tf32") == 4 * 3 * (6 + 5)


def test_a_frozen_layer_keeps_nothing_for_its_weight() -> None:
    frozen = graph(
        ("MatMul", "matmul", "xw", "m"),
        ("MatMul", "matmul", "mv", "z"),
        shapes={"x": (0, 6), "w": (6, 5), "m": (0, 5), "v": (5, 2), "z": (0, 2)},
        parameters="v",
    )
    assert residual_tensors(frozen, names(frozen)) == ("m",)


@pytest.mark.parametrize(
    ("op_type", "family", "kept"),
    [
        ("Add", "elementwise", ""),
        ("Mul", "elementwise", "a"),
        ("Div", "elementwise", "a"),
    ],
)
def test_binary_operators(op_type: str, family: str, kept: str) -> None:
    # Only m depends on a parameter; the other operand is data.
    g = graph(
        ("MatMul", "matmul", "xw", "m"),
        (op_type, family, "ma", "z"),
        shapes={"x": (0, 6), "w": (6, 5), "m": (0, 5), "a": (0, 5), "z": (0, 5)},
    )
    assert residual_tensors(g, names(g)[1:]) == tuple(kept)


def test_dropout_keeps_a_byte_an_element_and_batch_norm_its_statistics() -> None:
    g = graph(
        ("Conv", "conv", "xw", "c"),
        ("BatchNormalization", "normalisation", "cs", "n"),
        ("Dropout", "elementwise", "n", "z"),
        shapes={
            "x": (0, 3, 8, 8),
            "w": (4, 3, 3, 3),
            "c": (0, 4, 6, 6),
            "s": (4,),
            "n": (0, 4, 6, 6),
            "z": (0, 4, 6, 6),
        },
    )
    assert residual_bytes(g, [names(g)[1]], batch=2) == 4 * (2 * 4 * 36) + 2 * 4 * 4
    assert residual_bytes(g, [names(g)[2]], batch=2) == 2 * 4 * 36


def test_residuals_of_parts_bound_those_of_the_whole() -> None:
    whole = residual_bytes(CHAIN, names(CHAIN), batch=5)
    parts = [residual_bytes(CHAIN, [n], batch=5) for n in names(CHAIN)]
    assert max(parts) <= whole <= sum(parts)


def test_workspace_is_the_peak_of_what_lives_between_with_slack() -> None:
    g = graph(
        ("Transpose", "movement", "x", "a"),
        ("Transpose", "movement", "a", "b"),
        ("Transpose", "movement", "b", "z"),
        shapes={"x": (0, 10), "a": (0, 10), "b": (0, 10), "z": (0, 10)},
        parameters="",
    )
    # a and b at once, 4 bytes, 10 elements a sample; z is a result, x an argument.
    assert workspace_bytes(g, names(g), batch=5, phase="forward") == 2 * 4 * 10 * 5 * 1.2
    assert workspace_bytes(g, names(g)[:1], batch=5, phase="forward") == 0


def test_convolutions_to_small_pictures_are_unfolded() -> None:
    g = graph(
        ("Conv", "conv", "xw", "z"),
        shapes={"x": (0, 3, 8, 8), "w": (4, 3, 3, 3), "z": (0, 4, 6, 6)},
    )
    assert workspace_bytes(g, names(g), batch=2, phase="forward") == pytest.approx(2 * 36 * 27 * 4 * 1.2, abs=1)

"""Initial values: their spread in closed form, and the same whoever asks."""

from collections.abc import Iterable

import numpy as np
import pytest

from hpdlf.errors import DataError
from hpdlf.exec.initialization import fans, initial_values
from hpdlf.models.onnxpp.graph import Dim, Graph, Operator, Tensor

SHAPES = {
    "conv.w": (64, 32, 3, 3), "conv.b": (64,), "bn.scale": (64,), "bn.bias": (64,), "bn.mean": (64,), "bn.var": (64,),
    "fc.w": (10, 4096), "fc.b": (10,), "mix": (256, 128), "gain": (128,), "shift": (1, 128), "table": (1000, 64),
}  # fmt: skip


def graph() -> Graph:
    operators = (
        Operator(name="conv", op_type="Conv", family="conv", inputs=("x", "conv.w", "conv.b"), outputs=("a",)),
        Operator(
            name="bn", op_type="BatchNormalization", family="normalisation",
            inputs=("a", "bn.scale", "bn.bias", "bn.mean", "bn.var"), outputs=("b", "mean2", "var2"),
        ),
        Operator(
            name="fc", op_type="Gemm", family="matmul",
            inputs=("b", "fc.w", "fc.b"), outputs=("c",), attributes={"transB": 1},
        ),
        Operator(name="mm", op_type="MatMul", family="matmul", inputs=("c", "mix"), outputs=("d",)),
        Operator(name="mul", op_type="Mul", family="elementwise", inputs=("d", "gain"), outputs=("e",)),
        Operator(name="add", op_type="Add", family="elementwise", inputs=("e", "shift"), outputs=("f",)),
        Operator(name="look", op_type="Gather", family="gather", inputs=("table", "i"), outputs=("g",)),
    )  # fmt: skip
    tensors = {n: Tensor(name=n, dtype="float32", shape=tuple(map(Dim, s))) for n, s in SHAPES.items()}
    state = {"bn.mean": "mean2", "bn.var": "var2"}
    return Graph(
        name="net", opset=17, operators=operators, tensors=tensors, inputs=("x",), targets=(), outputs=("f",),
        loss=None, parameters=tuple(n for n in SHAPES if n not in state), state=state, constants=(),
    )  # fmt: skip


def never(names: Iterable[str]) -> dict[str, np.ndarray]:
    raise AssertionError("the file is not asked")


def drawn(rule: str, names: Iterable[str] = SHAPES, seed: int = 1, precision: str = "float32") -> dict[str, np.ndarray]:
    return initial_values(graph(), list(names), initialization=rule, seed=seed, load=never, precision=precision)


@pytest.mark.parametrize(
    ("name", "fan_in", "fan_out"),
    [("conv.w", 32 * 9, 64 * 9), ("fc.w", 4096, 10), ("mix", 256, 128), ("table", 64, 64)],
)
@pytest.mark.parametrize("rule", ["he", "glorot", "lecun"])
def test_spread(name: str, fan_in: int, fan_out: int, rule: str) -> None:
    variance = {"he": 2 / fan_in, "glorot": 2 / (fan_in + fan_out), "lecun": 1 / fan_in}[rule]
    values = drawn(rule)[name]
    assert values.shape == SHAPES[name]
    np.testing.assert_allclose(values.var(), variance, rtol=0.05)
    assert abs(values.mean()) < 4 * np.sqrt(variance / values.size)
    assert np.abs(values).max() <= np.sqrt(3 * variance) * (1 + 1e-6)


def test_grouped_and_transposed_convolutions() -> None:
    grouped = Operator(name="c", op_type="Conv", family="conv", inputs=(), outputs=(), attributes={"group": 4})
    transposed = Operator(name="c", op_type="ConvTranspose", family="conv", inputs=(), outputs=())
    assert fans(grouped, 1, (64, 8, 3, 3)) == (72, 144)
    assert fans(transposed, 1, (16, 8, 2, 2)) == (64, 32)


def test_what_is_not_drawn() -> None:
    values = drawn("he")
    ones = {"bn.scale", "bn.var", "gain"}
    for name in ("conv.b", "bn.scale", "bn.bias", "bn.mean", "bn.var", "fc.b", "gain", "shift"):
        assert (values[name] == (1.0 if name in ones else 0.0)).all(), name


def test_a_value_depends_on_seed_and_name_alone() -> None:
    whole, part = drawn("he"), drawn("he", ["mix"])
    np.testing.assert_array_equal(whole["mix"], part["mix"])
    assert (drawn("he", ["mix"], seed=2)["mix"] != part["mix"]).any()
    doubles = drawn("he", ["mix"], precision="float64")["mix"]
    assert doubles.dtype == np.float64
    np.testing.assert_array_equal(doubles.astype("float32"), part["mix"])


def test_values_of_the_file_are_taken_in_the_precision_of_the_run() -> None:
    held = {"mix": np.random.default_rng(0).random((256, 128)).astype("float32"), "bn.var": np.full(64, 3.0, "float32")}
    values = initial_values(
        graph(),
        list(held),
        initialization="model",
        seed=0,
        load=lambda names: {n: held[n] for n in names},
        precision="float64",
    )
    assert values["mix"].dtype == np.float64
    np.testing.assert_array_equal(values["mix"], held["mix"])
    assert values["mix"].flags.writeable


def test_placeholders_are_refused() -> None:
    with pytest.raises(DataError, match=r"placeholders: mix \[256, 128\].*initialization = \"he\""):
        initial_values(
            graph(),
            ["mix", "gain"],
            initialization="model",
            seed=0,
            load=lambda names: {n: np.ones(SHAPES[n]) for n in names},
        )


def test_zeros() -> None:
    assert not any(v.any() for n, v in drawn("zeros").items() if n != "bn.var")

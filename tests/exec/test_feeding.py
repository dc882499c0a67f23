"""Arrays that are handed over: by name or by place, converted where that keeps their meaning, else refused in words."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hpdlf.errors import DataError
from hpdlf.exec.feeding import batch_of, fed, named
from hpdlf.models.onnxpp import import_model
from hpdlf.models.onnxpp.graph import Dim, Graph, Tensor
from hpdlf.models.zoo import small


@pytest.fixture(scope="module")
def graph() -> Graph:
    """x (batch, 8) float32, labels (batch) int64 of 4 classes."""
    return import_model("mlp.onnx", content=small.mlp((8, 16, 4)).SerializeToString(), loss="softmax_xent").graph


def arrays(samples: int = 6) -> dict[str, Any]:
    return {"x": np.ones((samples, 8), np.float32), "labels": np.arange(samples) % 4}


def test_by_name_and_by_place() -> None:
    x = np.ones((2, 2))
    assert named({"b": 1, "a": 2}, ["a", "b"], "inputs") == {"a": 2, "b": 1}
    assert named((1, 2), ["a", "b"], "inputs") == {"a": 1, "b": 2}
    assert named(x, ["a"], "inputs")["a"] is x
    assert named([x], ["a"], "inputs")["a"] is x
    assert named([[1, 2], [3, 4]], ["a"], "inputs") == {"a": [[1, 2], [3, 4]]}


@pytest.mark.parametrize(
    ("given", "names", "told"),
    [
        ([1, 2, 3], ["a", "b"], r"2 inputs \(a, b\), 3 were given"),
        (None, ["a", "b"], r"2 inputs \(a, b\), 0 were given"),
        (None, ["a"], "a is missing"),
        ({"a": 1, "c": 2}, ["a", "b"], "b is missing; c is none of them"),
    ],
)
def test_other_names_are_refused(given: Any, names: list[str], told: str) -> None:
    with pytest.raises(DataError, match=told):
        named(given, names, "inputs")


def test_types_are_converted_where_the_meaning_stays(graph: Graph) -> None:
    given = {"x": np.ones((3, 8)), "labels": np.array([0, 1, 3], np.uint8)}
    found, batch = fed(graph, given, precision="float32")
    assert batch == 3
    assert (found["x"].dtype, found["labels"].dtype) == (np.float32, np.int64)


def test_numpy_arrays_are_copied_and_those_of_jax_are_not(graph: Graph) -> None:
    given = arrays()
    found, _ = fed(graph, given, precision="float32")
    given["x"][:] = 7.0
    assert (found["x"] == 1.0).all()
    mine = jnp.ones((6, 8))
    found, _ = fed(graph, {**arrays(), "x": mine}, precision="float32")
    assert found["x"] is mine
    assert isinstance(found["x"], jax.Array)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"x": np.ones((6, 7), np.float32)}, r"x has shape \(batch, 8\), \(6, 7\) was given"),
        ({"x": np.ones((6, 8, 1), np.float32)}, r"x has shape \(batch, 8\)"),
        ({"x": np.ones((6, 8), int)}, r"x is float32, int64 was given: convert it, array\.astype\('float32'\)"),
        ({"x": np.ones((6, 8), np.uint8)}, "/ 255 for bytes of images"),
        ({"x": np.ones((6, 8), complex)}, "complex128 was given"),
        ({"x": np.ones((5, 8), np.float32)}, "samples differ: x has 5, labels has 6"),
        ({"labels": np.zeros(6, np.float32)}, "labels is int64, float32 was given"),
        ({"labels": np.full(6, 2**63, np.uint64)}, "which int64 cannot hold"),
        ({"labels": np.array([0, 1, 2, 3, 4, 0])}, r"labels must lie in 0\.\.3, but sample 4 has 4"),
    ],
)
def test_what_does_not_fit_is_refused(graph: Graph, changed: dict[str, Any], told: str) -> None:
    with pytest.raises(DataError, match=told):
        fed(graph, {**arrays(), **changed}, precision="float32")


def test_everything_is_told_at_once(graph: Graph) -> None:
    with pytest.raises(DataError, match=r"x has shape.*labels is int64"):
        fed(graph, {"x": np.ones((6, 7)), "labels": np.zeros(6)}, precision="float32")


def test_samples_of_a_shape() -> None:
    tensor = Tensor(name="x", dtype="float32", shape=(Dim(fixed=1, per_sample=2), Dim(3)))
    assert batch_of(tensor, (9, 3)) == 4
    assert batch_of(tensor, (8, 3)) is None
    assert batch_of(tensor, (1, 3)) is None  # no samples
    assert batch_of(tensor, (9, 3, 1)) is None
    assert batch_of(Tensor(name="k", dtype="float32", shape=(Dim(3),)), (3,)) == 1

import numpy as np
import pytest
from onnx import TensorProto, numpy_helper

from hpdlf.errors import ModelError
from hpdlf.models.zoo import build
from hpdlf.models.zoo.builder import Builder, need


def test_names_follow_scopes_and_stay_unique() -> None:
    b = Builder(name="n")
    x = b.input("x", 4)
    with b.scope("a"):
        x = b.dense(x, 4, 4)
        x = b.dense(x, 4, 4)
        x = b.node("Relu", x)
    model = b.model(y=(x, (4,)))
    assert [w.name for w in model.graph.initializer] == ["a.weight", "a.bias", "a.weight_2", "a.bias_2"]
    assert [n.name for n in model.graph.node] == ["a.matmul", "a.add", "a.matmul_2", "a.add_2", "a.relu"]
    assert model.graph.node[-1].output[0] == "y"


def test_seeded_weights_have_the_variance_they_should() -> None:
    b = Builder(name="n", seed=1)
    b.weight((400, 500), fan_in=400)
    [weight] = b.weights
    assert numpy_helper.to_array(weight).var() == pytest.approx(2 / 400, rel=0.01)
    assert build("resnet18", seed=3).SerializeToString() == build("resnet18", seed=3).SerializeToString()
    assert build("resnet18", seed=3).SerializeToString() != build("resnet18", seed=4).SerializeToString()


def test_weights_without_values_are_external_data_without_a_file() -> None:
    model = build("gpt", layers=1)
    weights = [w for w in model.graph.initializer if w.dims and len(w.dims) == 2]
    assert weights
    assert all(w.data_location == TensorProto.EXTERNAL and not w.raw_data for w in weights)


def test_equal_constants_are_one() -> None:
    b = Builder(name="n")
    assert b.constant([1, 2]) == b.constant(np.array([1, 2]))
    assert b.constant(1.0) != b.constant(1)
    assert b.constant(1.0) != b.constant([1.0])


def test_need() -> None:
    need("a", 1, True, "one")
    with pytest.raises(ModelError, match="a = 2: expected one"):
        need("a", 2, False, "one")

import numpy as np
import onnx
import pytest

from hpdlf.models.zoo import conv_bn_net, digits_cnn, mlp


@pytest.mark.parametrize("build", [lambda **k: mlp((4, 8, 3), **k), digits_cnn, conv_bn_net])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_models_are_standard_and_seeded(build, dtype: str) -> None:
    model = build(dtype=dtype, seed=5)
    onnx.checker.check_model(model, full_check=True)
    assert model.SerializeToString() == build(dtype=dtype, seed=5).SerializeToString()
    assert model.SerializeToString() != build(dtype=dtype, seed=6).SerializeToString()
    assert {onnx.helper.tensor_dtype_to_np_dtype(t.data_type) for t in model.graph.initializer} == {np.dtype(dtype)}
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_he_variance() -> None:
    [weight, _bias] = mlp((400, 500), seed=1).graph.initializer
    assert onnx.numpy_helper.to_array(weight).var() == pytest.approx(2 / 400, rel=0.01)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="widths"):
        mlp((4,))
    with pytest.raises(ValueError, match="float16"):
        mlp((4, 2), dtype="float16")  # type: ignore[arg-type]

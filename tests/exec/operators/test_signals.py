"""Fourier transforms, windows and mel weights: against NumPy and onnxruntime, and finite differences."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from hpdlf.errors import ModelError
from hpdlf.exec.backend import Backend
from hpdlf.exec.operators import lowering, step_context
from hpdlf.models.onnxpp import Operator


@pytest.mark.parametrize("length", [None, 5, 8, 11])
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("inverse", [0, 1])
def test_transforms_are_numpys(inverse: int, parts: int, length: int | None) -> None:
    x = np.random.default_rng(0).standard_normal((2, 8, 3, parts))
    node = onnx.helper.make_node("DFT", ["x", "n" if length else "", "a"], ["y"], inverse=inverse)
    operands = [x, np.array(length), np.array(1)] if length else [x, np.array(1)]
    (y,) = Backend.run_node(node, operands)
    signal = x[..., 0] + (1j * x[..., 1] if parts == 2 else 0)
    wanted = (np.fft.ifft if inverse else np.fft.fft)(signal, length, axis=1)
    np.testing.assert_allclose(y[..., 0] + 1j * y[..., 1], wanted, atol=1e-12)


@pytest.mark.parametrize("length", [7, 8])
def test_half_a_spectrum_and_back(length: int) -> None:
    x = np.random.default_rng(0).standard_normal((2, length, 1)).astype(np.float32)
    forward = onnx.helper.make_node("DFT", ["x"], ["y"], onesided=1)
    (y,) = Backend.run_node(forward, [x])
    assert y.shape == (2, length // 2 + 1, 2)
    back = onnx.helper.make_node("DFT", ["y", "n"], ["z"], onesided=1, inverse=1)
    (z,) = Backend.run_node(back, [y, np.array(length)])
    np.testing.assert_allclose(z, x, atol=1e-6)


def test_half_a_spectrum_of_a_complex_signal_is_refused() -> None:
    node = onnx.helper.make_node("DFT", ["x"], ["y"], onesided=1)
    with pytest.raises(ModelError, match="no symmetry"):
        Backend.run_node(node, [np.ones((1, 4, 2), np.float32)])


@pytest.mark.parametrize("onesided", [0, 1])
@pytest.mark.parametrize(("step", "window", "length"), [(3, True, None), (4, False, 8), (2, True, 8)])
def test_frames(
    step: int, window: bool, length: int | None, onesided: int, like_onnxruntime: Callable[..., Any]
) -> None:
    rng = np.random.default_rng(0)
    inputs: dict[str, np.ndarray] = {"x": rng.standard_normal((2, 31, 1)).astype(np.float32), "s": np.array(step)}
    if window:
        inputs["w"] = rng.uniform(0, 1, 8).astype(np.float32)
    if length:
        inputs["n"] = np.array(length)
    names = ["x", "s", "w" if window else "", "n" if length else ""]
    node = onnx.helper.make_node("STFT", names[: 4 if length else 3], ["y"], onesided=onesided)
    like_onnxruntime(node, inputs, opset=17, rtol=1e-4, atol=1e-4)


def test_frames_longer_than_the_signal_are_refused() -> None:
    node = onnx.helper.make_node("STFT", ["x", "s", "", "n"], ["y"])
    with pytest.raises(ModelError, match="do not fit a signal of 5 samples"):
        Backend.run_node(node, [np.ones((1, 5, 1), np.float32), np.array(1), np.array(8)])


@pytest.mark.parametrize("size", [1, 7, 8])
@pytest.mark.parametrize("op_type", ["BlackmanWindow", "HammingWindow", "HannWindow"])
def test_windows(op_type: str, size: int, like_onnxruntime: Callable[..., Any]) -> None:
    for periodic in (0, 1) if size > 1 else (1,):
        node = onnx.helper.make_node(op_type, ["n"], ["y"], periodic=periodic)
        like_onnxruntime(node, {"n": np.array(size)}, opset=17)


@pytest.mark.parametrize(
    ("bands", "length", "rate", "low", "high"), [(8, 64, 8192, 0, 4096), (40, 400, 16000, 20, 8000)]
)
def test_mel_weights(
    bands: int, length: int, rate: int, low: float, high: float, like_onnxruntime: Callable[..., Any]
) -> None:
    names = ["b", "n", "r", "l", "h"]
    values = [np.array(bands), np.array(length), np.array(rate), np.float32(low), np.float32(high)]
    node = onnx.helper.make_node("MelWeightMatrix", names, ["y"])
    like_onnxruntime(node, dict(zip(names, values, strict=True)), opset=17)


def test_mel_weights_beyond_the_spectrum_are_refused() -> None:
    node = onnx.helper.make_node("MelWeightMatrix", ["b", "n", "r", "l", "h"], ["y"])
    with pytest.raises(ModelError, match="do not fit 33 frequencies"):
        Backend.run_node(node, [np.array(4), np.array(64), np.array(8000), np.float32(0), np.float32(9000)])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("attributes", [{}, {"inverse": 1}, {"onesided": 1}])
def test_gradients(attributes: dict[str, int], check_gradients: Callable[..., Any]) -> None:
    node = Operator(name="n", op_type="DFT", family="elementwise", inputs=("x",), outputs=("y",), attributes=attributes)
    function, context = lowering(node, 20), step_context(seed=0, step=0, samples=np.arange(1))
    x = np.random.default_rng(0).standard_normal((2, 6, 1))
    check_gradients(lambda x: function(node, x, context=context)[0], x)

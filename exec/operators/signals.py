"""Signals: Fourier transforms, window functions, and the matrix of the mel scale.

Complex numbers are pairs of real ones in the last axis, as the standard has no complex operators.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from onnx import TensorProto, helper

from ...errors import ModelError
from ...models.onnxpp.graph import Operator
from .registry import Value, lowers, static

__all__ = ["dft", "mel_weight_matrix", "stft", "window_function"]


@lowers("DFT", since=20)
def dft(node: Operator, x: Value, length: Value | None = None, axis: Value | None = None) -> Array:
    """The discrete Fourier transform of x (..., 1 or 2) along `axis` (default the last of the signal).

    `onesided` gives the first half of a real signal's spectrum, or (with `inverse`) takes it and gives the signal.
    """
    along = -2 if axis is None else int(static(node, "axis", axis).reshape(()))
    return _transformed(node, x, length, along)


@lowers("DFT", since=17)
def dft_by_attribute(node: Operator, x: Value, length: Value | None = None) -> Array:
    """Before opset 20 the axis is an attribute."""
    return _transformed(node, x, length, int(node.attributes.get("axis", 1)))


def _transformed(node: Operator, x: Value, length: Value | None, axis: int) -> Array:
    signal = jnp.asarray(x)
    axis %= signal.ndim
    if axis == signal.ndim - 1 or signal.shape[-1] not in (1, 2):
        raise ModelError(
            f"DFT node {node.name!r}: axis {axis} of an input {signal.shape}, but the last axis holds real and imaginary "
            "parts: it must be another, and have 1 or 2 elements."
        )
    inverse, onesided = bool(node.attributes.get("inverse", 0)), bool(node.attributes.get("onesided", 0))
    half = inverse and onesided
    count = 2 * (signal.shape[axis] - 1) if half else signal.shape[axis]
    if length is not None:
        count = int(static(node, "dft_length", length).reshape(()))
    if count < 1:
        raise ModelError(f"DFT node {node.name!r}: a transform of length {count}. Correct the model's dft_length.")
    wide = signal.astype(jnp.promote_types(signal.dtype, jnp.float32))
    if half:
        return jnp.fft.irfft(_complex(wide), count, axis)[..., None].astype(signal.dtype)
    return _spectrum(node, wide, count, axis, inverse, onesided).astype(signal.dtype)


def _spectrum(node: Operator, x: Array, count: int, axis: int, inverse: bool, onesided: bool) -> Array:
    if onesided and x.shape[-1] == 2:
        raise ModelError(
            f"{node.op_type} node {node.name!r}: the spectrum of a complex signal has no symmetry, so `onesided` cannot be "
            "asked for. Set onesided to 0."
        )
    if x.shape[-1] == 1 and not inverse:
        half = jnp.fft.rfft(x[..., 0], count, axis)
        # The rest of a real signal's spectrum mirrors it: half the work, and symmetric to the last bit.
        rest = jnp.flip(lax.slice_in_dim(half, 1, (count + 1) // 2, axis=axis), axis)
        return _pairs(half if onesided else jnp.concatenate([half, jnp.conj(rest)], axis))
    return _pairs((jnp.fft.ifft if inverse else jnp.fft.fft)(_complex(x), count, axis))


def _complex(x: Array) -> Array:
    return lax.complex(x[..., 0], x[..., 1] if x.shape[-1] == 2 else jnp.zeros_like(x[..., 0]))


def _pairs(x: Array) -> Array:
    return jnp.stack([x.real, x.imag], axis=-1)


@lowers("STFT", since=17)
def stft(node: Operator, signal: Value, step: Value, window: Value | None = None, length: Value | None = None) -> Array:
    """Spectra of frames of a signal (N, samples, 1 or 2), each times `window`: (N, frames, frequencies, 2).

    A frame starts every `step` samples and has as many as the window, or `length`, or the whole signal. PyTorch exports
    real signals without their last axis.
    """
    x = jnp.asarray(signal)
    x = x[..., None] if x.ndim == 2 else x
    hop = int(static(node, "frame_step", step).reshape(()))
    if length is not None:
        size = int(static(node, "frame_length", length).reshape(()))
    else:
        size = x.shape[1] if window is None else window.shape[0]
    if hop < 1 or not 1 <= size <= x.shape[1] or (window is not None and window.shape != (size,)):
        raise ModelError(
            f"STFT node {node.name!r}: frames of {size} samples, every {hop}, with a window of "
            f"{'no' if window is None else window.shape[0]} elements, do not fit a signal of {x.shape[1]} samples. Give it "
            "a longer signal, or correct frame_length and frame_step."
        )
    frames = (x.shape[1] - size) // hop + 1
    at = np.arange(frames)[:, None] * hop + np.arange(size)
    wide = jnp.take(x.astype(jnp.promote_types(x.dtype, jnp.float32)), at, axis=1, mode="clip")
    if window is not None:
        wide = wide * jnp.asarray(window, wide.dtype)[:, None]
    # The default asks for half the spectrum; a complex signal has only a whole one.
    onesided = bool(node.attributes.get("onesided", 1))
    return _spectrum(node, wide, size, 2, False, onesided).astype(x.dtype)


@lowers("BlackmanWindow", "HammingWindow", "HannWindow", since=17)
def window_function(node: Operator, size: Value) -> np.ndarray:
    """A sum of cosines over `size` elements; `periodic` ones end one element before they would repeat."""
    shares = {
        "BlackmanWindow": (0.42, 0.5, 0.08),
        # Hamming's own coefficients, which the standard takes, and not the usual 0.54 and 0.46.
        "HammingWindow": (25 / 46, 21 / 46),
        "HannWindow": (0.5, 0.5),
    }[node.op_type]
    count = int(static(node, "size", size).reshape(()))
    whole = count if node.attributes.get("periodic", 1) else count - 1
    angle = 2 * np.pi * np.arange(count) / max(whole, 1)
    values = sum((-1) ** k * share * np.cos(k * angle) for k, share in enumerate(shares))
    return np.asarray(values).astype(_output_type(node))


def _output_type(node: Operator) -> Any:
    return helper.tensor_dtype_to_np_dtype(int(node.attributes.get("output_datatype", TensorProto.FLOAT)))


@lowers("MelWeightMatrix", since=17)
def mel_weight_matrix(
    node: Operator, bands: Value, length: Value, rate: Value, lowest: Value, highest: Value
) -> np.ndarray:
    """How much each of ``length // 2 + 1`` frequencies counts in each of `bands` triangles that lie evenly in mel.

    mel(f) = 2595 log10(1 + f / 700); frequencies in hertz at a sample rate of `rate` hertz. Known before the run.
    """
    names = ("num_mel_bins", "dft_length", "sample_rate", "lower_edge_hertz", "upper_edge_hertz")
    count, size, per_s, low_hz, high_hz = (
        static(node, name, value).reshape(()).item()
        for name, value in zip(names, (bands, length, rate, lowest, highest), strict=True)
    )
    frequencies = size // 2 + 1
    low, high = (2595 * np.log10(1 + f / 700) for f in (low_hz, high_hz))
    mel = low + np.arange(count + 2) * (high - low) / (count + 2)
    edges = np.floor((size + 1) * (700 * (10 ** (mel / 2595) - 1)) / per_s).astype(np.int64)
    if count < 1 or edges.min() < 0 or edges.max() > frequencies:
        raise ModelError(
            f"MelWeightMatrix node {node.name!r}: {count} bands from {low_hz} to {high_hz} Hz do not fit {frequencies} "
            f"frequencies up to {per_s / 2} Hz. Correct the model's edges, sample rate or dft_length."
        )
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    at = np.arange(frequencies)[:, None]
    rising = np.where(centre > left, (at - left) / np.maximum(centre - left, 1), 1)
    falling = (right - at) / np.maximum(right - centre, 1)
    matrix = np.where((at >= left) & (at <= centre), rising, 0)
    matrix = np.where((at >= centre) & (at < right), falling, matrix)
    return matrix.astype(_output_type(node))

"""ImageDecoder: what Pillow wrote, and what nothing wrote."""

import io

import numpy as np
import onnx
import pytest

from hpdlf.errors import ModelError
from hpdlf.exec.backend import Backend

Image = pytest.importorskip("PIL.Image")


def encoded(kind: str, mode: str = "RGB") -> tuple[np.ndarray, np.ndarray]:
    """(the bytes of a file of a small image, its pixels)."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    stream = io.BytesIO()
    image.save(stream, format=kind)
    return np.frombuffer(stream.getvalue(), np.uint8), np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("kind", ["BMP", "PNG", "PPM", "TIFF"])
def test_formats_without_loss(kind: str) -> None:
    file, pixels = encoded(kind)
    for wanted, same in (("RGB", pixels), ("BGR", pixels[:, :, ::-1])):
        node = onnx.helper.make_node("ImageDecoder", ["x"], ["y"], pixel_format=wanted)
        np.testing.assert_array_equal(Backend.run_node(node, [file])[0], same)


@pytest.mark.parametrize("mode", ["P", "L", "RGBA", "1"])
def test_every_way_of_storing_pixels_becomes_three_channels(mode: str) -> None:
    file, pixels = encoded("PNG", mode)
    node = onnx.helper.make_node("ImageDecoder", ["x"], ["y"])
    np.testing.assert_array_equal(Backend.run_node(node, [file])[0], pixels)


def test_grey_has_one_channel() -> None:
    node = onnx.helper.make_node("ImageDecoder", ["x"], ["y"], pixel_format="Grayscale")
    assert Backend.run_node(node, [encoded("PNG")[0]])[0].shape == (5, 7, 1)


def test_what_is_no_image_has_no_elements() -> None:
    node = onnx.helper.make_node("ImageDecoder", ["x"], ["y"])
    for file in (np.zeros(20, np.uint8), encoded("PNG")[0][:40], encoded("GIF")[0]):
        assert Backend.run_node(node, [file])[0].shape == (0, 0, 3)


def test_a_small_file_of_a_huge_image_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    node = onnx.helper.make_node("ImageDecoder", ["x"], ["y"])
    with pytest.raises(ModelError, match="decompression bomb"):
        Backend.run_node(node, [encoded("PNG")[0]])

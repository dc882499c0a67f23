"""Images as files: ImageDecoder."""

from __future__ import annotations

import io

import numpy as np

from ...errors import ModelError
from ...models.onnxpp.graph import Operator
from .registry import lowers, text

__all__ = ["image_decoder"]

FORMATS = ("BMP", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""What the standard asks for, in Pillow's names; its readers of other formats are not offered a file."""


@lowers("ImageDecoder", since=20, host=True)
def image_decoder(node: Operator, encoded: np.ndarray) -> np.ndarray:
    """The bytes of an image file -> uint8 (height, width, channels) in `pixel_format` RGB, BGR or Grayscale.

    What cannot be decoded is an image without elements, as the standard says. Raises ModelError for a file that would
    decode to more than 179 million pixels (Pillow's limit), which is how a small file fills a machine's memory.
    """
    wanted = text(node, "pixel_format", "RGB")
    if wanted not in ("RGB", "BGR", "Grayscale"):
        raise ModelError(f"ImageDecoder node {node.name!r}: pixel_format {wanted!r} is none of RGB, BGR, Grayscale.")
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise ModelError(
            f"ImageDecoder node {node.name!r} needs Pillow to read image files: pip install pillow"
        ) from None
    try:
        with Image.open(io.BytesIO(encoded.tobytes()), formats=FORMATS) as image:
            pixels = np.asarray(image.convert("L" if wanted == "Grayscale" else "RGB"))
    except Image.DecompressionBombError as error:
        raise ModelError(f"ImageDecoder node {node.name!r}: {error}") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
        return np.zeros((0, 0, 1 if wanted == "Grayscale" else 3), np.uint8)
    if wanted == "Grayscale":
        return pixels[:, :, None]
    return np.ascontiguousarray(pixels[:, :, ::-1]) if wanted == "BGR" else pixels

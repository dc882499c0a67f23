"""Models that several tests read, imported once."""

from pathlib import Path

import onnx
import pytest

from hpdlf.models.onnxpp import Onnxpp, import_model, save_onnxpp
from hpdlf.models.zoo import conv_bn_net

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


@pytest.fixture(scope="session")
def light() -> Path:
    """The folder of graphs that ship with onnx."""
    return LIGHT


@pytest.fixture(scope="session")
def resnet50() -> Onnxpp:
    return import_model(LIGHT / "light_resnet50.onnx", loss="softmax_xent")


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Onnxpp:
    """A small residual network with BatchNormalization, imported for training."""
    path = tmp_path_factory.mktemp("small") / "net.onnx"
    onnx.save(conv_bn_net(), path)
    return import_model(path, loss="softmax_xent")


@pytest.fixture(scope="session")
def small_file(small: Onnxpp, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small_pp") / "net.onnx"
    save_onnxpp(small, path)
    return path

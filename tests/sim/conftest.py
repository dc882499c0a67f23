"""A small network to simulate."""

from __future__ import annotations

import onnx
import pytest

from hpdlf.models.onnxpp import Graph, import_model
from hpdlf.models.zoo import small


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    path = tmp_path_factory.mktemp("model") / "digits.onnx"
    onnx.save(small.digits_cnn(), path)
    return import_model(path, loss="softmax_xent").graph

"""Observations for tests."""

from collections.abc import Callable

import pytest

from hpdlf.models.cost import Observation
from hpdlf.models.onnxpp import Graph, import_model
from hpdlf.models.zoo import conv_bn_net


@pytest.fixture(scope="session")
def make_observation() -> Callable[..., Observation]:
    """make_observation(seconds=1.0, run=..., key=..., subject=..., any other field)."""

    def make(
        seconds: float = 1.0, *, run: str = "one", key: str = "k", subject: str = "toy", **more: object
    ) -> Observation:
        fields: dict = {
            "subject": subject,
            "subject_kind": "gpu",
            "kind": "segment",
            "key": key,
            "components": {"conv": 0.5, "dispatch": 1e-5},
            "seconds": seconds,
            "low_s": seconds * 0.9,
            "high_s": seconds * 1.1,
            "repeats": 5,
            "run": run,
            "versions": {"jax": "0.6"},
            "time": "2024-12-01T00:00:00Z",
        }
        return Observation(**(fields | more))

    return make


@pytest.fixture(scope="session")
def small_network() -> Graph:
    """A small residual network with a loss, imported for training."""
    return import_model("net.onnx", loss="softmax_xent", content=conv_bn_net().SerializeToString()).graph

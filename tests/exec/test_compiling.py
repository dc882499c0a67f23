"""What XLA is told of convolutional networks alone."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from hpdlf.exec import compiling
from hpdlf.exec.compiling import compiled, compiler_options
from hpdlf.models.onnxpp import Operator, import_model
from hpdlf.models.zoo import digits_cnn, small

known = pytest.mark.skipif(
    not version("jaxlib").startswith(compiling.KNOWN) or jax.default_backend() != "cpu",
    reason="this XLA is told nothing",
)


def operators(convolves: bool) -> tuple[Operator, ...]:
    model = digits_cnn(channels=(2, 2), hidden=4) if convolves else small.mlp((4, 4, 4))
    return import_model("net.onnx", content=model.SerializeToString()).graph.operators


def function(x: jax.Array) -> jax.Array:
    return jnp.tanh(x) * x + 1


@pytest.fixture
def one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "allowed_cpus", lambda: [0])


@known
@pytest.mark.usefixtures("one_core")
def test_convolutional_networks_alone_are_compiled_otherwise() -> None:
    assert compiler_options(operators(True)) == compiling.OLDER_GENERATOR
    others = operators(False)
    assert compiler_options(others) == {}
    assert compiler_options([replace(others[0], op_type="ConvTranspose"), *others]) == compiling.OLDER_GENERATOR


@pytest.mark.parametrize(
    ("place", "name", "value"),
    [
        (compiling, "version", "0.11.0"),  # a release that may not know it
        (compiling.jax, "default_backend", "gpu"),
        (compiling, "allowed_cpus", [0, 1]),
    ],
)
@known
@pytest.mark.usefixtures("one_core")
def test_others_are_told_nothing(monkeypatch: pytest.MonkeyPatch, place: Any, name: str, value: Any) -> None:
    monkeypatch.setattr(place, name, lambda *_: value)
    assert compiler_options(operators(True)) == {}


@known
@pytest.mark.usefixtures("one_core")
def test_what_the_user_says_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=true")
    assert compiler_options(operators(True)) == {}


@pytest.mark.usefixtures("one_core")
@pytest.mark.parametrize("convolves", [False, True])
def test_it_computes_the_same_alone_and_inside(convolves: bool) -> None:
    x = jnp.linspace(-1, 1, 64)
    called = compiled(function, operators(convolves))
    expected = function(x)
    assert jnp.allclose(called(x), expected, rtol=1e-6)
    assert jnp.allclose(jax.jit(lambda x: called(x) * 2)(x), 2 * expected, rtol=1e-6)
    assert jnp.allclose(jax.grad(lambda x: called(x).sum())(x), jax.grad(lambda x: function(x).sum())(x), rtol=1e-5)
    assert called.lower(x).compile() is not None


@pytest.mark.usefixtures("one_core")
def test_what_is_donated_is_given_up() -> None:
    x = jnp.ones(1024)
    compiled(lambda x: x + 1, operators(True), donate_argnums=0)(x)
    assert x.is_deleted()

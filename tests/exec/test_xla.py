"""The installed XLA computes right, and settings of the user's stay."""

import os
import subprocess
import sys

import pytest

from hpdlf.exec import xla

PROGRAM = """
import hpdlf.exec, jax, jax.numpy as jnp, numpy as np
x = np.random.default_rng(0).standard_normal((512, 512)).astype(np.float32)
y = jax.jit(lambda x: (x @ jnp.full((512, 1000), 0.02)).sum(0))(x)
np.testing.assert_allclose(y, 0.02 * x.sum(dtype=np.float64), rtol=1e-3)
"""


def test_sum_of_a_product_with_one_broadcast_number_is_right() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, env=environment, timeout=120)


BARRIERS = """
import hpdlf.exec, jax, jax.numpy as jnp
compiled = jax.jit(lambda x: jax.lax.optimization_barrier(x * 2) + 1).lower(jnp.ones(64)).compile()
assert "opt-barrier" in compiled.as_text()
assert compiled(jnp.ones(64))[0] == 3
"""


def test_barriers_hold() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", BARRIERS], check=True, env=environment, timeout=120)


def test_what_the_user_says_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = "--xla_disable_hlo_passes=cse_barrier_expander"
    monkeypatch.setattr(xla, "entry_points", lambda group: ())
    monkeypatch.setattr(xla, "version", lambda name: "0.10.7")
    assert xla.with_flags("") == f"{xla.NO_REDUCTIONS} {kept}"
    assert xla.with_flags("--xla_a=1") == f"--xla_a=1 {xla.NO_REDUCTIONS} {kept}"
    own = "--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_DOT"
    assert xla.with_flags(own) == f"{own} {kept}"
    monkeypatch.setattr(xla, "version", lambda name: "0.11.0")
    assert xla.with_flags("") == kept
    assert xla.with_flags(kept) == kept
    assert xla.with_flags("--xla_disable_hlo_passes=dce --xla_a=1") == (
        "--xla_disable_hlo_passes=dce,cse_barrier_expander --xla_a=1"
    )
    monkeypatch.setattr(xla, "entry_points", lambda group: ("an accelerator's",))
    assert xla.with_flags("--xla_a=1") == "--xla_a=1"

"""The machine's fingerprint, and what a rank's environment holds."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy
import pytest

from hpdlf.exec.environment import (
    _driver,
    compilation_cache,
    examine_conditions,
    examine_machine,
    package_versions,
    rank_environment,
)


def test_the_fingerprint_is_the_hardware() -> None:
    here = examine_machine()
    assert here == examine_machine()
    assert replace(here, name="another", allowed_cpus=1).fingerprint == here.fingerprint
    assert replace(here, cpu="Another CPU").fingerprint != here.fingerprint
    assert replace(here, cpus=here.cpus + 1).fingerprint != here.fingerprint
    assert here.as_dict()["fingerprint"] == here.fingerprint
    assert 1 <= here.allowed_cpus <= here.cpus


def test_versions() -> None:
    found = package_versions(("numpy", "no-such-package-anywhere"))
    assert found == {"python": ".".join(map(str, sys.version_info[:3])), "numpy": numpy.__version__}


def test_the_driver_has_a_version(tmp_path: Path) -> None:
    path = tmp_path / "version"
    assert _driver(path) == {}
    path.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb 22\nGCC version: gcc 12.2.0\n")
    assert _driver(path) == {"driver": "550.54.14"}


def test_conditions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert examine_conditions(tmp_path) == {}
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "scaling_governor").write_text("powersave\n")
    (tmp_path / "scaling_max_freq").write_text("2400000\n")
    assert examine_conditions(tmp_path) == {"threads": 1, "governor": "powersave", "clock_hz": 2.4e9}


def test_a_rank_inherits_what_the_user_set_and_nothing_of_an_outer_run() -> None:
    outer = {
        "PATH": "/bin",
        "OMP_NUM_THREADS": "3",
        "OMPI_COMM_WORLD_SIZE": "4",
        "PMIX_RANK": "0",
        "OMPI_MCA_btl": "self",
    }
    found = rank_environment(outer)
    assert found["OMP_NUM_THREADS"] == "3"
    assert found["OMPI_MCA_btl"] == "self"
    assert found["OPENBLAS_NUM_THREADS"] == "1"
    assert found["OMPI_MCA_osc"] == "^ucx"
    assert int(found["MALLOC_MMAP_THRESHOLD_"]) > 2**30
    assert "PMIX_RANK" not in found
    assert "OMPI_COMM_WORLD_SIZE" not in found


def test_compiled_code_is_kept_per_kind_of_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HPDLF_CACHE", str(tmp_path))
    assert compilation_cache() == tmp_path / "compiled" / examine_machine().fingerprint
    assert rank_environment({})["JAX_COMPILATION_CACHE_DIR"] == str(compilation_cache())
    assert rank_environment({"JAX_COMPILATION_CACHE_DIR": "/mine"})["JAX_COMPILATION_CACHE_DIR"] == "/mine"

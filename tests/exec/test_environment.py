"""The machine's fingerprint, and what a rank's environment holds."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy
import pytest

from hpdlf.exec.environment import compilation_cache, examine_machine, package_versions, rank_environment


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

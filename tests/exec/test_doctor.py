"""The doctor looks at this very machine; every finding that is not well says how to mend it."""

import subprocess
import sys
from pathlib import Path

import pytest

from hpdlf.exec import doctor
from hpdlf.exec.doctor import Finding, examine


@pytest.fixture(scope="module")
def findings() -> dict[str, Finding]:
    return {finding.name: finding for finding in examine()}


def test_everything_that_the_guide_promises_is_looked_at(findings: dict[str, Finding]) -> None:
    for name in ("Python", "Packages", "MPI library", "mpiexec", "JAX devices", "CPU energy", "GPU energy", "Cores",
    "Allocator",
                 "Profile of this machine", "Observations", "Batch system"):  # fmt: skip
        assert name in findings
    assert findings["Python"].status == "ok"
    assert "jax" in findings["Packages"].value


def test_what_is_not_well_has_a_mend(findings: dict[str, Finding]) -> None:
    for finding in findings.values():
        assert finding.value
        assert finding.status == "ok" or finding.mend, finding
        assert "\n" not in finding.value


def test_a_probe_that_fails_says_why() -> None:
    out, why = doctor._probe([sys.executable, "-c", "raise SystemExit('no library here')"])
    assert (out, why) == ("", "no library here")
    assert doctor._probe(["/nowhere/mpiexec"])[1].startswith("[Errno 2]")


def test_missing_mpi_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_probe", lambda command: ("", "RuntimeError: cannot load MPI library"))
    (finding,) = doctor._mpi_library()
    assert (finding.status, finding.value) == ("missing", "RuntimeError: cannot load MPI library")
    assert "pip install 'hpdlf[mpi]'" in finding.mend


def test_own_allocator_settings_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "8")
    (finding,) = doctor._allocator()
    assert (finding.status, finding.value) == ("warn", "MALLOC_ARENA_MAX=8")
    assert "unset MALLOC_ARENA_MAX" in finding.mend


def test_slurm_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "4")
    assert doctor._batch_system()[0].value == "Slurm, inside job 17 on 4 nodes"


def test_observations_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HPDLF_DATABASE", str(tmp_path / "o.duckdb"))
    assert doctor._observations()[0].status == "warn"
    (tmp_path / "o.duckdb").write_bytes(b"x" * 100_000)
    assert doctor._observations()[0].value == f"{tmp_path / 'o.duckdb'} (0.1 MB)"


def test_looking_starts_neither_mpi_nor_jax() -> None:
    code = "import sys, hpdlf.exec.doctor; print([m for m in ('jax', 'mpi4py.MPI') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

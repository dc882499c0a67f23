"""``import hpdlf``: cheap, complete, and the same verbs as the command line, on paths or on objects."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest

import hpdlf
from hpdlf.models.zoo import digits_cnn

VERBS = [
    "approve",
    "doctor",
    "export",
    "import_model",
    "load_cluster",
    "load_model",
    "measure",
    "plan",
    "refine",
    "report",
    "search",
    "simulate",
    "train",
    "tune",
    "whatif",
]


@pytest.fixture
def digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HPDLF_DATABASE", str(tmp_path / "observations.duckdb"))
    path = tmp_path / "digits.onnx"
    onnx.save(digits_cnn(channels=(4, 8), hidden=16), path)
    return path


def test_import_is_cheap() -> None:
    code = (
        "import sys, time; before = set(sys.modules); start = time.perf_counter()\n"
        "import hpdlf; took = time.perf_counter() - start\n"
        "heavy = {'numpy', 'onnx', 'jax', 'pydantic', 'pandas', 'typer', 'rich'}\n"
        "print(took, sorted(heavy & (set(sys.modules) - before)))"
    )
    seen = []
    for _ in range(3):
        took, _, heavy = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.partition(" ")
        assert heavy == "[]\n"
        seen.append(float(took))
    assert min(seen) < 0.05


def test_every_public_name_is_there() -> None:
    assert set(VERBS) <= set(hpdlf.__all__)
    assert set(dir(hpdlf)) >= set(hpdlf.__all__)
    for name in hpdlf.__all__:
        found = getattr(hpdlf, name)
        assert name == "__version__" or callable(found)
        assert name == "__version__" or found.__doc__, name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="simulat"):
        hpdlf.simulat  # noqa: B018


def test_simulate_takes_paths_and_objects(digits: Path) -> None:
    options = {"batch": 64, "data": 4, "microbatches": 2}
    by_path = hpdlf.simulate(str(digits), on="dgx-a100:1", loss="softmax_xent", **options)
    model = hpdlf.import_model(digits, loss="softmax_xent")
    by_object = hpdlf.simulate(model, on=hpdlf.load_cluster("dgx-a100:1"), **options)
    assert by_path.to_dict() == by_object.to_dict()
    assert by_path.trace == by_object.trace
    assert len(by_path.to_frame()) == 1
    assert by_path.plot().axes


def test_search_ranks_and_explains(digits: Path) -> None:
    found = hpdlf.search(digits, on="generic-x86", batch=32)
    frame = found.to_frame()
    assert list(frame["step_s"].dropna()) == sorted(frame["step_s"].dropna())
    assert str(found.best.strategy) in found.reason


def test_plan_approve_load(digits: Path, tmp_path: Path) -> None:
    result = hpdlf.plan(digits, on="generic-x86", batch=32, ranks=2, out=tmp_path / "plan.json", recipe=hpdlf.Recipe())
    assert hpdlf.load_plan(result.path) == result.plan
    assert len(result.to_frame()) >= 1
    assert result.plot().axes
    assert hpdlf.approve(result.path, approved_by="Ada").approved_by == "Ada"
    with pytest.raises(hpdlf.HpdlfError, match="changed since it was shown"):
        hpdlf.approve(result.path, approved_by="Ada", shown_sha256="0" * 64)


def test_models_round_trip(digits: Path, tmp_path: Path) -> None:
    model = hpdlf.load_model(digits, loss="softmax_xent")
    hpdlf.save_model(model, tmp_path / "d.onnx")
    assert hpdlf.load_model(tmp_path / "d.onnx").graph.parameters == model.graph.parameters
    assert hpdlf.load_model(model) is model


def test_whatif_of_objects(digits: Path) -> None:
    found = hpdlf.whatif(hpdlf.load_model(digits, loss="softmax_xent"), ["dgx-a100"], [1, 2], batch_per_device=8)
    assert list(found.to_frame()["devices"]) == [1, 2]


def test_a_simulation_of_512_devices_is_quick(digits: Path) -> None:
    model, cluster = hpdlf.load_model(digits, loss="softmax_xent"), hpdlf.load_cluster("dgx-a100")
    start_s = time.perf_counter()
    found = hpdlf.simulate(model, on=cluster, batch=2048, data=128, pipeline=4, microbatches=8)
    assert found.ranks == 512
    assert time.perf_counter() - start_s < 5

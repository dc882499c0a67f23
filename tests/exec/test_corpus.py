"""Real exported graphs, executed: outputs against those that onnxruntime gave."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from hpdlf.exec.backend import Backend

CORPUS = Path(__file__).parents[2].parent / "shared" / "onnx"
QUICK = ("mobilenet_v3_large.script", "ppocr_cls", "scaler_mlp", "silero_vad_16k_op15", "basic_pitch_nmp")
NAMES = sorted(path.name.removesuffix(".expect.json") for path in CORPUS.glob("*.expect.json"))

pytestmark = pytest.mark.skipif(not CORPUS.is_dir(), reason="the corpus of graphs (../shared/onnx) is not here")


def _input(spec: dict[str, Any], dtype: str) -> np.ndarray:
    shape, rule = tuple(spec["shape"]), spec["rule"]
    if rule == "ones":
        return np.ones(shape, dtype)
    if rule == "zeros-or-scalar":
        return np.zeros(shape, dtype)
    seed = re.fullmatch(r"PCG64\((\d+)\) (standard_normal float32|integers\((\d+),(\d+)\))", rule)
    assert seed is not None, rule
    rng = np.random.Generator(np.random.PCG64(int(seed[1])))
    if seed[3] is None:
        return rng.standard_normal(shape, np.float32)
    return rng.integers(int(seed[3]), int(seed[4]), shape).astype(dtype)


def _has_weights(path: Path) -> bool:
    model = onnx.load(path, load_external_data=False)
    return all(t.data_location != onnx.TensorProto.EXTERNAL for t in model.graph.initializer)


def _placed(name: str, folder: Path) -> Path:
    """The graph with its weights, made where they are not in the file."""
    source = CORPUS / f"{name}.onnx"
    if _has_weights(source):
        return source
    path = folder / source.name
    shutil.copyfile(source, path)
    subprocess.run([sys.executable, CORPUS / "make_weights.py", source, "--out", folder], check=True, timeout=300)
    return path


def _compare(name: str, folder: Path) -> None:
    expected = json.loads((CORPUS / f"{name}.expect.json").read_text())
    prepared = Backend.prepare(_placed(name, folder))
    given = {n: _input(spec, spec["dtype"]) for n, spec in expected["inputs"].items()}
    results = dict(zip(prepared.outputs, prepared.run(given), strict=True))
    assert set(results) == set(expected["outputs"])
    for output, want in expected["outputs"].items():
        got = results[output]
        assert list(got.shape) == want["shape"]
        assert got.dtype.name == want["dtype"]
        # Sums of thousands of terms in float32 end in other last digits: compared with the spread of all values.
        # Never nearer than the steps of onnxruntime's sigmoid around 0, which are 3e-8.
        near = max(2e-3 * max(abs(want["std"]), 1e-3 * abs(want["mean"])), 6e-8)
        np.testing.assert_allclose(got.reshape(-1)[want["at"]], want["values"], rtol=1e-3, atol=near)
        assert got.mean(dtype=np.float64) == pytest.approx(want["mean"], rel=1e-3, abs=near)
        assert got.std(dtype=np.float64) == pytest.approx(want["std"], rel=1e-3, abs=near)


@pytest.mark.parametrize("name", [n for n in NAMES if n in QUICK])
def test_graph_gives_the_expected_outputs(name: str, tmp_path: Path) -> None:
    _compare(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in NAMES if n not in QUICK])
def test_large_graph_gives_the_expected_outputs(name: str, tmp_path: Path) -> None:
    if name == "alexnet.train":
        pytest.skip("draws random numbers: Dropout in training mode")
    _compare(name, tmp_path)

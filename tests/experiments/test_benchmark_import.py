"""The benchmark of imports writes graphs that import, and a large one stays within what is promised."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpdlf.experiments.benchmark_import import NETWORKS, main, write
from hpdlf.models.onnxpp import import_model


@pytest.mark.parametrize("network", list(NETWORKS))
def test_networks_import(network: str, tmp_path: Path) -> None:
    count = write(network, 120, tmp_path / "m.onnx")
    bind = {"sequence": 16} if network == "transformer" else {}
    graph = import_model(tmp_path / "m.onnx", bind=bind, without_weights=True).graph
    assert len(graph.operators) == count >= 118
    assert any(d.per_sample for d in graph.tensors[graph.outputs[0]].shape)


@pytest.mark.slow
def test_ten_thousand_operators_take_seconds_and_kilobytes(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["10000"]) == 0
    rows = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert len(rows) == len(NETWORKS)
    for row in rows:
        assert row["wall_s"] < 10
        assert row["bytes_per_node"] < 12_000

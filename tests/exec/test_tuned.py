"""What runs without a plan takes the ways that were measured, and nothing else changes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hpdlf.exec.environment import examine_machine
from hpdlf.exec.tuned import as_tuned
from hpdlf.models.cost import ObservationDatabase
from hpdlf.models.cost.lowering_choice import choose_all, observed
from hpdlf.models.cost.lowerings import Processor, ways
from hpdlf.models.cost.lowerings_graph import computations
from hpdlf.models.onnxpp import Graph, import_model
from hpdlf.models.zoo import conv_bn_net


@pytest.fixture(scope="module")
def graph() -> Graph:
    return import_model("net.onnx", loss="softmax_xent", content=conv_bn_net().SerializeToString()).graph


def test_measured_ways_are_taken_and_expected_ones_beside_them(graph: Graph, tmp_path: Path) -> None:
    store = ObservationDatabase(tmp_path / "o.duckdb")
    assert as_tuned(graph, samples=4, dtype="float32", database=store) is graph
    name, conv = next(iter(computations(graph, samples=4).items()))
    able = ways(conv, "weight")
    store.add(
        observed(
            conv,
            "weight",
            way,
            seconds=1.0 + i,
            low_s=1.0,
            high_s=9.0,
            repeats=3,
            cpu="a processor",
            machine=examine_machine().fingerprint,
            host="here",
            threads=len(os.sched_getaffinity(0)),
            dtype="float32",
            run="tune",
            time="2026-01-01",
        )
        for i, way in enumerate(able)
    )
    found = as_tuned(graph, samples=4, dtype="float32", database=store)
    assert found.operator[name].lowering["weight"] == able[0]
    # Of the others the expected ways.
    told = {o.name: o.lowering for o in found.operators if o.lowering}
    hints = choose_all(graph, samples=4, measured={}, on=Processor(threads=len(os.sched_getaffinity(0))))
    assert set(told) == set(hints)
    assert all(told[n] == {d: h.way for d, h in hint.items()} for n, hint in hints.items() if n != name)
    larger = as_tuned(graph, samples=8, dtype="float32", database=store)
    assert larger.operator[name].lowering["weight"] == able[0]  # as with half as many samples
    assert as_tuned(graph, samples=4, dtype="float64", database=store) is graph


def test_a_database_that_cannot_be_read_is_said(graph: Graph, tmp_path: Path) -> None:
    store = ObservationDatabase(tmp_path / "o.duckdb")
    store.path.write_bytes(b"no database" * 1000)
    with pytest.warns(UserWarning, match=r"What `hpdlf tune` measured is not used: .*o\.duckdb"):
        assert as_tuned(graph, samples=4, dtype="float32", database=store) is graph

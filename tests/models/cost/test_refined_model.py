"""What the cost model makes of a user's measurements: as measured, interpolated, learned; and what drifted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpdlf.hwprofiles import Device, load_device
from hpdlf.models.cost import CostModel, Observation, ObservationDatabase, Workload, compute_workload
from hpdlf.models.onnxpp import Graph

MakeChain = Callable[..., Graph]
DEVICE = load_device("generic-x86-core")


@pytest.fixture
def workload(make_chain: MakeChain) -> Callable[[int], Workload]:
    """A training step's segment at a batch size, on the generic core."""
    graph = make_chain(3, 256)
    parts = [(tuple(o.name for o in graph.operators), phase) for phase in ("forward", "backward")]
    return lambda batch: compute_workload(graph, parts, batch=batch, device=DEVICE)


def true_s(batch: int) -> float:
    """What this "machine" takes: a constant part, and one that grows."""
    return 2e-3 + 1e-4 * batch


def seen(work: Workload, batch: int, *, factor: float = 1.0, run: str = "r", **more: Any) -> Observation:
    seconds = factor * true_s(batch)
    return Observation.of(work, [seconds] * 9, run=run, **more)


def test_from_measured_to_modelled(workload: Callable[[int], Workload], tmp_path: Path) -> None:
    database = ObservationDatabase(tmp_path / "o.duckdb")
    database.add(seen(workload(b), b) for b in (8, 64))
    model = CostModel.load(database.path)
    measured, between, beyond = (model.price(workload(b)) for b in (8, 32, 256))
    assert [e.provenance for e in (measured, between, beyond)] == ["measured", "interpolated", "learned"]
    assert measured.seconds == true_s(8)
    assert between.seconds == pytest.approx(true_s(32), rel=0.15)
    assert between.low_s < true_s(32) < between.high_s
    assert beyond.seconds == pytest.approx(true_s(256), rel=0.1)
    assert measured.relative_width == 0
    assert between.relative_width
    assert beyond.relative_width
    assert CostModel.default().price(workload(8)).provenance == "modelled"


def test_one_batch_size_helps_the_others(workload: Callable[[int], Workload]) -> None:
    plain, refined = CostModel.default(), CostModel.fitted([seen(workload(32), 32)])
    for batch in (16, 64, 128):
        error = abs(refined.price(workload(batch)).seconds / true_s(batch) - 1)
        assert error < abs(plain.price(workload(batch)).seconds / true_s(batch) - 1)
        assert error < 0.35


def test_a_profile_measured_anew_changes_no_ratio(workload: Callable[[int], Workload], make_chain: MakeChain) -> None:
    """Anchors are priced by the profile of today, not by that of the day when they were measured."""
    from dataclasses import replace

    faster = replace(
        DEVICE,
        peak_flops_per_s={p: replace(q, value=4 * q.value) for p, q in DEVICE.peak_flops_per_s.items()},
        memory_bandwidth_bytes_per_s=replace(
            DEVICE.memory_bandwidth_bytes_per_s, value=4 * DEVICE.memory_bandwidth_bytes_per_s.value
        ),
    )
    graph = make_chain(3, 256)
    parts = [(tuple(o.name for o in graph.operators), phase) for phase in ("forward", "backward")]
    model = CostModel.fitted([seen(workload(b), b) for b in (8, 64)])
    found = model.price(compute_workload(graph, parts, batch=32, device=faster), faster)
    assert found.seconds == pytest.approx(model.price(workload(32), DEVICE).seconds, rel=0.05)


def test_what_was_measured_before_a_drift_counts_as_learned(workload: Callable[[int], Workload]) -> None:
    days = [{"time": f"2026-01-0{d}", "run": f"r{d}"} for d in range(1, 7)]
    rows = [seen(workload(8), 8, factor=1.0 if i < 3 else 1.3, **day) for i, day in enumerate(days)]
    rows.append(seen(workload(32), 32, **days[0]))
    model = CostModel.fitted(rows)
    (drift,) = model.drifts
    assert drift.ratio == pytest.approx(1.3)
    assert model.price(workload(8)).seconds == pytest.approx(1.3 * true_s(8))
    corrected = model.price(workload(32))
    assert corrected.provenance == "interpolated"
    assert corrected.seconds == pytest.approx(1.3 * true_s(32), rel=0.02)


def test_ranks_that_share_the_node_are_told_apart(workload: Callable[[int], Workload]) -> None:
    """Two ranks on a node take a third longer each; what was measured with as many is returned as measured."""
    rows = [
        seen(workload(8), 8, factor=factor, run=f"{ranks}", conditions={"ranks_on_node": ranks})
        for ranks, factor in ((1, 1.0), (2, 1.3))
    ]
    model = CostModel.fitted(rows)
    for ranks, factor in ((1, 1.0), (2, 1.3)):
        found = model.price(workload(8), ranks_on_node=ranks)
        assert (found.provenance, found.seconds) == ("measured", pytest.approx(factor * true_s(8)))
        near = model.price(workload(16), ranks_on_node=ranks)
        assert near.provenance == "learned"
    alone, together = (model.price(workload(16), ranks_on_node=n).seconds for n in (1, 2))
    assert together > 1.15 * alone
    four = model.price(workload(8), ranks_on_node=4)
    assert four.provenance == "interpolated"
    assert model.price(workload(8)).provenance == "measured"


def test_a_relative_is_predicted_better(make_chain: MakeChain) -> None:
    """Measured: an A100 that needs a third more than predicted. Asked: an A30, and a card of another vendor."""
    graph = make_chain(3, 2048)
    parts = [(tuple(o.name for o in graph.operators), "forward")]
    measured, sibling, stranger = (load_device(name) for name in ("A100-SXM-80", "A30", "MI100"))
    rows = []
    plain = CostModel.default()
    for batch in (256, 512, 1024, 2048):
        work = compute_workload(graph, parts, batch=batch, device=measured)
        seconds = 1.35 * plain.price(work, measured).seconds
        about = {"vendor": measured.vendor, "architecture": measured.architecture}
        rows.append(Observation.of(work, [seconds] * 5, run="r", conditions=about))
    refined = CostModel.fitted(rows)

    def moved(device: Device) -> float:
        work = compute_workload(graph, parts, batch=700, device=device)
        before, after = plain.price(work, device), refined.price(work, device)
        assert after.high_s / after.low_s <= before.high_s / before.low_s
        return after.seconds / before.seconds

    assert 1.1 < moved(sibling) < 1.3
    assert 1.0 < moved(stranger) < 1.1
    assert refined.price(compute_workload(graph, parts, batch=700, device=sibling), sibling).provenance == "learned"

"""Micro-benchmarks: counting, summaries, energy counters, and a real short measurement of this machine."""

import os
import sys
from dataclasses import replace

import pytest

from hpdlf.errors import RunError
from hpdlf.exec.affinity import usable_cores
from hpdlf.exec.energy_meters import find_rapl_meters
from hpdlf.exec.microbenchmarks import measure_machine
from hpdlf.exec.microbenchmarks_chains import BUILDERS, Case, graph_of
from hpdlf.exec.microbenchmarks_compute import call_of, sample, summarise
from hpdlf.exec.microbenchmarks_design import cases
from hpdlf.exec.microbenchmarks_processes import (
    json_lines,
    json_lines_together,
    one_core_environment,
    run_together,
)
from hpdlf.exec.microbenchmarks_profile import Findings, local_cluster
from hpdlf.experiments.calibration import workload_of_case
from hpdlf.hwprofiles import cluster_from_toml, load_cluster, load_device
from hpdlf.models.cost.cpu_terms import CpuTerms
from hpdlf.models.cost.lowerings import Convolution, expected_way


def test_the_design_is_balanced_from_its_beginning():
    few, many = cases(60), cases(400)
    assert many[:60] == few
    assert len({case.text for case in many}) == 400
    assert {case.kind for case in few} == set(BUILDERS)
    convolutions = [case.sizes for case in many if case.kind == "conv"]
    assert {lowering(sizes) for sizes in convolutions} >= {
        "matmul",
        "im2col",
        "xla",
        "winograd2",
        "winograd4",
        "shifted",
    }


def lowering(sizes):
    stride, pad = sizes.get("stride", 1), (sizes["r"] - 1) // 2
    conv = Convolution(
        samples=sizes["n"],
        channels=sizes["c"],
        filters=sizes["k"],
        groups=sizes.get("groups", 1),
        size=(sizes["h"],) * 2,
        kernel=(sizes["r"],) * 2,
        strides=(stride,) * 2,
        dilations=(1, 1),
        pads=((pad, pad),) * 2,
        output=(sizes["h"] // stride,) * 2,
    )
    return expected_way(conv, "forward")


@pytest.mark.parametrize("kind", sorted(BUILDERS))
def test_every_kind_of_chain_runs_in_the_executor_and_is_counted(kind):
    case = next(c for c in cases(400) if c.kind == kind and (c.passes != "forward" or kind == "product"))
    for passes in {case.passes, "sgd"} if kind in ("conv", "dense", "update") else {case.passes}:
        call_of(replace(case, passes=passes))()
        workload = workload_of_case(replace(case, passes=passes), load_device("generic-x86-core"))
        assert workload.operations
        assert all(CpuTerms.default().seconds(o) is not None for o in workload.operations)
    assert Case(**case.as_dict()) == case


def test_views_around_a_chain_are_not_counted():
    case = Case(kind="norm", sizes={"n": 2, "h": 4, "c": 8, "norm": 0, "add": 1, "act": "Relu"})
    bench = graph_of(case)
    assert [bench.graph.operator[name].op_type for name in bench.core] == ["Add", "Relu"]
    assert len(bench.compiled) == 4


def test_a_summary_names_outliers():
    summary = summarise([1.0] * 9 + [10.0])
    assert (summary["seconds"], summary["low_s"], summary["fastest_s"], summary["outliers"]) == (1.0, 1.0, 1.0, 1)
    assert summarise([3.0, 1.0, 2.0])["seconds"] == 2.0
    assert summarise([3.0] * 5, [2.0] * 4 + [9.0])["seconds"] == 2.0


def test_sampling_groups_short_calls_and_stops():
    calls = []
    times = sample(lambda: calls.append(1), seconds=0.01, most=7)
    assert 3 <= len(times) <= 7
    assert len(calls) > 100
    assert len(sample(lambda: None, seconds=0.0)) == 3


def test_a_package_counts_and_wraps_around(tmp_path):
    zone = tmp_path / "intel-rapl:0"
    (tmp_path / "intel-rapl:0:0").mkdir()
    zone.mkdir()
    (zone / "name").write_text("package-0\n")
    (zone / "max_energy_range_uj").write_text("1000000\n")
    (zone / "energy_uj").write_text("900000\n")
    readers, reason = find_rapl_meters(tmp_path)
    assert [name for name, _ in readers] == ["package-0"]
    assert not reason
    read_j = readers[0][1]
    assert read_j() == pytest.approx(0.9)
    (zone / "energy_uj").write_text("100000\n")
    assert read_j() == pytest.approx(1.1)


def test_no_counter_has_a_reason(tmp_path):
    assert "there is no" in find_rapl_meters(tmp_path / "none")[1]
    assert "no CPU package" in find_rapl_meters(tmp_path)[1]


def test_threads_of_one_core_count_once(tmp_path):
    for cpu in os.sched_getaffinity(0):
        topology = tmp_path / f"cpu{cpu}" / "topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text("0-999\n")
    assert len(usable_cores(tmp_path)) == 1


def test_a_nested_mpi_run_does_not_see_the_outer(monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
    monkeypatch.setenv("PMIX_RANK", "1")
    monkeypatch.setenv("OMPI_MCA_btl", "self")
    env = one_core_environment()
    assert not {"OMPI_COMM_WORLD_RANK", "PMIX_RANK"} & set(env)
    assert env["OMPI_MCA_btl"] == "self"


def test_a_failing_process_says_its_last_line():
    command = [
        sys.executable,
        "-c",
        "print('{\"a\": 1}', flush=True); print('noise'); raise SystemExit('no such thing')",
    ]
    lines = json_lines(command, env=dict(os.environ), timeout_s=30, what="testing")
    assert next(lines) == {"a": 1}
    with pytest.raises(RunError, match="testing failed with exit code 1: no such thing"):
        next(lines)


def test_processes_tell_together_and_one_failure_fails_all():
    said = "print('{\"part\": %d}', flush=True)"
    commands = [[sys.executable, "-c", said % i] for i in range(2)]
    found = list(json_lines_together(commands, env=dict(os.environ), timeout_s=30, what="testing"))
    assert sorted(m["part"] for m in found) == [0, 1]
    commands.append([sys.executable, "-c", "raise SystemExit('no')"])
    with pytest.raises(RunError, match="testing failed"):
        list(json_lines_together(commands, env=dict(os.environ), timeout_s=30, what="testing"))


def test_a_hanging_process_is_ended():
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with pytest.raises(RunError, match="longer than 0 s"):
        list(json_lines(command, env=dict(os.environ), timeout_s=0.3, what="testing"))
    with pytest.raises(RunError, match="longer than 0 s"):
        run_together([command], env=dict(os.environ), timeout_s=0.3, what="testing")


def observation(**changes):
    base = {
        "family": "matmul",
        "dtype": "float32",
        "shape": {"m": 10, "n": 10, "k": 10},
        "flops": 2e9,
        "seconds": 0.1,
        "low_s": 0.08,
        "high_s": 0.2,
        "fastest_s": 0.05,
    }
    return base | changes


def findings(**changes):
    times = {"seconds": 1.0, "low_s": 0.5, "high_s": 2.0}
    together = [{"bytes": 8e9, **times}, {"bytes": 9e9, **times}]
    base = {"cores": 2, "date": "2026-01-01", "dispatch": {**times, "seconds": 1e-5, "low_s": 1e-5, "high_s": 1e-5}}
    return Findings(**(base | {"triad_alone": {"bytes": 2e10, **times}, "triad_together": together} | changes))


def test_a_profile_from_known_numbers():
    messages = [
        {"kind": "message", "ranks": 2, "bytes": 8, "seconds": 1e-6, "low_s": 1e-6, "high_s": 2e-6},
        {"kind": "message", "ranks": 2, "bytes": 10**7, "seconds": 1e-3, "low_s": 5e-4, "high_s": 2e-3},
        {"kind": "allreduce", "ranks": 2, "bytes": 10**7, "seconds": 2e-3, "low_s": 2e-3, "high_s": 4e-3},
    ]
    cluster = local_cluster("local", findings(idle_w=10.0, busy_w=50.0), [observation()], messages)
    device, link = cluster.device, cluster.node.link
    assert device.peak_flops_per_s["float32"].value == pytest.approx(4e10)
    assert device.achieved_flops_per_s["float32"].value == pytest.approx(2e10)
    assert device.memory_bandwidth_bytes_per_s.value == pytest.approx(9e9)
    assert device.memory_bandwidth_bytes_per_s.high == pytest.approx(2e10)
    assert (device.idle_w.value, device.limit_w.value, device.limit_w.tier) == (5.0, 25.0, "measured")
    assert device.communication_overlap.tier == "modelled"
    assert (link.latency_s.value, link.bandwidth_bytes_per_s.value) == (pytest.approx(1e-6), pytest.approx(1e10))
    assert link.collective_bandwidth_bytes_per_s == pytest.approx(5e9)
    assert cluster.n_devices == 2
    assert cluster.price_usd_per_node_hour is None
    assert cluster_from_toml(cluster.to_toml(), origin="x") == cluster


def test_without_a_link_there_is_one_device_and_without_a_counter_a_modelled_power():
    cluster = local_cluster("local", findings(), [observation()], [])
    assert cluster.n_devices == 1
    assert cluster.node.link is None
    assert cluster.device.limit_w.tier == "modelled"
    assert cluster.device.limit_w.value == load_device("generic-x86-core").limit_w.value
    assert "no energy counter" in cluster.device.idle_w.source


def test_without_a_product_there_is_no_profile():
    with pytest.raises(RunError, match="no matrix product"):
        local_cluster("local", findings(), [observation(dtype="float64")], [])


@pytest.mark.parametrize("budget_s", [0, -1, float("nan")])
def test_a_budget_that_is_too_short_is_refused(budget_s):
    with pytest.raises(RunError, match="at least 5 seconds"):
        measure_machine(budget_s=budget_s)


def check(measurement, folder):
    assert measurement.path == folder / "clusters" / "local.toml"
    assert load_cluster("local") == measurement.cluster
    assert "product" in {one.case.kind for one in measurement.operators}
    for one in measurement.operators:
        assert 0 < one.fastest_s <= one.low_s <= one.seconds <= one.high_s
    assert {row["kind"] for row in measurement.rows()} == {one.case.kind for one in measurement.operators}
    peak = measurement.cluster.device.peak_flops_per_s["float32"]
    assert peak.tier == "measured"
    assert 1e8 < peak.value < 1e12


def test_measuring_this_machine_writes_a_profile_that_loads(tmp_path, monkeypatch):
    monkeypatch.setenv("HPDLF_PROFILES", str(tmp_path))
    seen = []
    measurement = measure_machine(budget_s=5, mpi=False, progress=lambda text, done, total: seen.append((done, total)))
    check(measurement, tmp_path)
    assert measurement.cluster.n_devices == 1
    assert "communication: not asked for" in measurement.skipped
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]


@pytest.mark.slow
@pytest.mark.mpi
def test_measuring_with_mpi_measures_the_link(tmp_path, monkeypatch):
    monkeypatch.setenv("HPDLF_PROFILES", str(tmp_path))
    measurement = measure_machine(budget_s=15)
    check(measurement, tmp_path)
    if not measurement.communication:
        pytest.skip(" ".join(measurement.skipped))
    assert {one.kind for one in measurement.communication} == {"message", "allreduce"}
    link = measurement.cluster.node.link
    assert link.latency_s.tier == link.bandwidth_bytes_per_s.tier == "measured"
    assert 1e-8 < link.latency_s.value < 1e-2
    assert measurement.cluster.n_devices == len(usable_cores())

"""What a workload's folder holds: data that fit the network, the order in which ours draws them, an approved plan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from hpdlf.exec.data import data_sha256
from hpdlf.experiments.benchmark_baselines import Job
from hpdlf.experiments.benchmark_workloads import WORKLOADS, Workload, prepare
from hpdlf.models.onnxpp import load_onnxpp
from hpdlf.models.onnxpp.hints import hints_of
from hpdlf.models.plan import Plan, check_approval

BERT = Workload(
    name="small bert",
    network="bert",
    hyper={
        "layers": 1,
        "hidden": 16,
        "heads": 2,
        "seq_len": 12,
        "vocab": 50,
        "max_positions": 12,
        "dropout": 0.0,
        "pretraining": False,
    },
    baselines=("ddp",),
    batch=4,
    ranks=2,
    threads=1,
    steps=3,
    window_steps=1,
    least=1.0,
)
RESNET = replace(
    BERT, name="small resnet", network="resnet", hyper={"depth": 18, "image": 32, "classes": 10}, ranks=1, threads=2
)


def _approved(folder: Path) -> Plan:
    plan, _ = check_approval(folder / "plan.json", data_sha256=data_sha256("data.npz", base_folder=folder))
    return plan


def test_a_transformer(tmp_path: Path) -> None:
    prepare(BERT, tmp_path / "b")
    data = dict(np.load(tmp_path / "b" / "data.npz"))
    assert {n: (a.shape, a.dtype.name) for n, a in data.items()} == {
        "tokens": ((16, 12), "int64"),
        "segments": ((16, 12), "int64"),
        "mask": ((16, 12), "float32"),
        "labels": ((16, 12), "int64"),
    }
    for name, most in (("tokens", 50), ("segments", 2), ("labels", 16)):
        assert (data[name].min(), data[name].max() < most) == (0, True), name
    assert (np.diff(data["mask"]) <= 0).all()
    assert (data["mask"].sum(axis=1) >= 6).all()
    job = Job.read(tmp_path / "b")
    assert (tuple(job.inputs), tuple(job.targets), job.threads) == (("tokens", "segments", "mask"), ("labels",), 1)
    assert len(job.turned) == 6
    plan = _approved(tmp_path / "b")
    assert (plan.strategy.ranks, plan.strategy.batch) == (2, 4)


def test_pictures_and_how_they_are_computed(tmp_path: Path) -> None:
    prepare(RESNET, tmp_path / "r")
    data = np.load(tmp_path / "r" / "data.npz")
    assert (data["x"].shape, data["labels"].max() < 10) == ((16, 3, 32, 32), True)
    assert np.load(tmp_path / "r" / "batches.npy").shape == (3, 4)
    model = load_onnxpp(tmp_path / "r" / "model.onnx")
    chosen = {o.name for o in model.graph.operators if o.op_type in ("Conv", "Gemm")}
    assert set(hints_of(model, "benchmark")) == chosen
    plan = _approved(tmp_path / "r")
    assert "core-x2" in plan.cluster_toml


def test_predicting_wants_no_plan(tmp_path: Path) -> None:
    prepare(replace(RESNET, kind="inference"), tmp_path / "i")
    assert not (tmp_path / "i" / "plan.json").exists()
    assert set(np.load(tmp_path / "i" / "data.npz")) == {"x"}


def test_cores_are_shared_out() -> None:
    one, two = replace(BERT, ranks=1, threads=None), replace(BERT, threads=None)
    assert one.cores == max(1, one.cores)
    assert two.cores == max(1, one.cores // 2)
    assert {w.title for w in WORKLOADS} >= {"resnet50 224", "resnet50 224, 2 ranks", "resnet50 224, inference"}

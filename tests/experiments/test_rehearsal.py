"""Small trainings in real ranks, and what they say; the experiment that holds predictions against steps of networks."""

import pytest

from hpdlf.experiments.rehearsal import Rehearsal, rehearse
from hpdlf.experiments.validate_machine import NETWORKS, Row, summary
from hpdlf.hwprofiles import load_cluster

BRIEF = (
    Rehearsal(widths=(8, 8, 4), batch=4, steps=20),
    Rehearsal(widths=(8, 8, 4), batch=4, data=2, bucket_bytes=64, steps=20),
    Rehearsal(widths=(8, 8, 4), batch=8, pipeline=2, microbatches=2, steps=20),
)


@pytest.mark.mpi
def test_a_rehearsal_on_one_rank_observes_loading_and_computing():
    found = list(rehearse(load_cluster("generic-x86:1x1"), chosen=BRIEF))
    assert {o.kind for o in found} == {"host", "segment"}
    assert all(o.run.startswith("rehearsal 0") and o.operations for o in found if o.kind == "segment")


@pytest.mark.slow
@pytest.mark.mpi
def test_two_ranks_observe_messages_and_all_reduces():
    told = []
    found = list(rehearse(load_cluster("generic-x86:1x2"), chosen=BRIEF, tell=told.append))
    assert told == []
    assert {"host", "segment", "collective", "transfer", "update"} <= {o.kind for o in found}
    assert {o.conditions["ranks_on_node"] for o in found} >= {1, 2}


def test_errors_are_relative_to_what_was_measured():
    def row(**more):
        base = {"network": "a", "ranks": 1, "batch": 2, "repeats_s": (1.0,), "noise": 0.01, "apart": 0.0}
        return Row(**base, measured_s=1.0, low_s=0.8, high_s=1.4, **more)

    rows = [row(before_s=1.1), row(before_s=0.8, after_s=1.02)]
    assert [round(r.before, 3) for r in rows] == [0.1, -0.2]
    assert rows[0].after is None
    found = summary(rows)
    assert found["before_max"] == pytest.approx(0.2)
    assert found["after_mean"] == pytest.approx(0.02)


@pytest.mark.parametrize("network", NETWORKS, ids=lambda n: n.name)
def test_networks_are_models(network):
    names = {node.op_type for node in network.make().graph.node}
    assert len(network.batches) == 3
    assert names & {"Gemm", "MatMul", "Conv"}

"""Explaining a model's operators on a device."""

from __future__ import annotations

import pytest

from hpdlf.errors import PlanError, ProfileError
from hpdlf.experiments.explain import device_of, explain
from hpdlf.hwprofiles import load_device


def test_equal_layers_share_a_row_and_shares_add_up(make_chain) -> None:  # type: ignore[no-untyped-def]
    found = explain(make_chain(4, width=1024), load_device("A100-SXM-80"), batch=512, phases=("forward",))
    product = next(o for o in found.operators if o.op_type == "MatMul")
    assert product.count == 4
    assert product.bound == "compute"
    assert sum(o.share for o in found.operators) == pytest.approx(1.0)
    assert found.seconds == pytest.approx(sum(o.seconds for o in found.operators))
    assert [o.seconds for o in found.operators] == sorted((o.seconds for o in found.operators), reverse=True)
    assert all(o.low_s <= o.seconds <= o.high_s for o in found.operators)
    assert found.fused_s < found.seconds  # one dispatch in place of five


def test_a_backward_pass_needs_a_loss(make_chain) -> None:  # type: ignore[no-untyped-def]
    from dataclasses import replace

    graph = replace(make_chain(1), loss=None)
    with pytest.raises(PlanError, match="no loss"):
        explain(graph, load_device("T4"), phases=("backward",))
    assert {o.phase for o in explain(graph, load_device("T4")).operators} == {"forward"}


def test_a_cluster_stands_for_its_device() -> None:
    assert device_of("dgx-a100").name == "A100-SXM-40"
    with pytest.raises(ProfileError, match="no device 'A100-SXN'"):
        device_of("A100-SXN")

"""Power of nodes and devices: means, traces that keep the energy, and directions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from hpdlf.errors import ProfileError
from hpdlf.hwprofiles import load_cluster
from hpdlf.models.onnxpp import Graph
from hpdlf.models.plan import Strategy
from hpdlf.models.zoo import import_network
from hpdlf.sim import simulate
from hpdlf.sim.energy import SUPPLY_EFFICIENCY, device_states, idle_node, nodes_in_use
from hpdlf.sim.power_trace import power_trace

MakeChain = Callable[..., Graph]
H100 = load_cluster("hgx-h100-immersed")


def test_a_device_draws_more_the_more_it_does() -> None:
    states = device_states(H100.device)
    assert states is not None
    limit = H100.device.limit_w
    assert limit is not None
    assert states.idle_w < states.waiting_w.value < states.communicating_w.value < 0.75 * limit.value


def test_a_busy_node_of_eight_draws_what_meters_show() -> None:
    # Large products on every device: 6.8 to 7.3 kW at the plug (mlcommons/training_results_v4.0, smc-ac-power).
    graph = import_network("gpt", layers=4, hidden=4096, heads=32, seq_len=2048, vocab=8192).graph
    found = simulate(graph, H100, Strategy(batch=64, data=8, precision="bfloat16"))
    power = found.figures.power
    assert power is not None
    assert 6600 < power.ac_w.value < 7400
    assert power.ac_w.low < power.ac_w.value < power.ac_w.high
    assert power.dc_w.value == pytest.approx(SUPPLY_EFFICIENCY * power.ac_w.value)


@pytest.mark.parametrize(
    "strategy", [Strategy(batch=512, data=8), Strategy(batch=512, data=4, pipeline=4, microbatches=4)]
)
def test_a_trace_keeps_the_energy_whatever_its_bins(make_chain: MakeChain, strategy: Strategy) -> None:
    found = simulate(make_chain(8, 1024), H100, strategy)
    fine, coarse = power_trace(found), power_trace(found, bins=7)
    assert fine.node_step_j == pytest.approx(coarse.node_step_j, rel=1e-9)
    assert found.figures.power is not None
    assert fine.node_step_j / found.figures.step_s.value == pytest.approx(found.figures.power.ac_w.value, rel=0.02)
    limit = H100.device.limit_w
    assert limit is not None
    assert all(np.all(watts <= 1.03 * limit.value) for watts in fine.device_w.values())
    assert len(fine.to_frame()) == 1000


def test_devices_without_a_rank_idle_and_nodes_are_in_use_whole(make_chain: MakeChain) -> None:
    found = [simulate(make_chain(4, 2048), H100, Strategy(batch=512 * n, data=n)).figures.power for n in (1, 8)]
    assert found[0] is not None
    assert found[1] is not None
    assert found[0].nodes == found[1].nodes == 1
    assert found[0].ac_w.value < found[1].ac_w.value
    assert (nodes_in_use(H100, 8), nodes_in_use(H100, 9)) == (1, 2)
    idle, waiting = (idle_node(H100, nodes=2, waiting=w) for w in (False, True))
    assert idle is not None
    assert waiting is not None
    assert idle.ac_w.value < waiting.ac_w.value < found[1].ac_w.value


def test_without_a_power_in_the_profile_nothing_is_said(make_chain: MakeChain) -> None:
    silent = replace(H100, node=replace(H100.node, host_active_w=None))
    found = simulate(make_chain(2, 64), silent, Strategy(batch=8))
    assert found.figures.power is None
    assert idle_node(silent, nodes=1) is None
    with pytest.raises(ProfileError, match="host_active_power"):
        power_trace(found)

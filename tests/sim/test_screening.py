"""Estimates of strategies: how far they lie from the simulation, and that nobody loses by trusting them."""

from __future__ import annotations

import time

import numpy as np
import onnx
import pytest

from hpdlf.hwprofiles import load_cluster
from hpdlf.models.cost import CostModel
from hpdlf.models.onnxpp import Graph, import_model
from hpdlf.models.plan import Strategy
from hpdlf.models.zoo import gpt_blocks, resnet18
from hpdlf.sim import search
from hpdlf.sim.cutting import Cutter
from hpdlf.sim.screening import FACTOR, screen
from hpdlf.sim.search import simulate, strategies


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Graph]:
    folder = tmp_path_factory.mktemp("networks")
    onnx.save(gpt_blocks(layers=4, width=512, heads=8, tokens=128), folder / "gpt.onnx")
    onnx.save(resnet18(image=64), folder / "resnet.onnx")
    return {
        "gpt": import_model(folder / "gpt.onnx", loss="mse").graph,
        "resnet": import_model(folder / "resnet.onnx", loss="softmax_xent").graph,
    }


PLANS = [("gpt", "dgx-a100:1", 64), ("resnet", "dgx-a100:1", 128), ("resnet", "xeon-64:2", 64)]


@pytest.mark.parametrize(("name", "on", "batch"), PLANS)
def test_simulations_lie_within_the_stated_factor(networks: dict[str, Graph], name: str, on: str, batch: int) -> None:
    cluster = load_cluster(on)
    cutter = Cutter(networks[name], cluster, CostModel.default())
    ratios = [
        simulate(networks[name], cluster, s).figures.step_s.value / screen(cutter, s).step_s
        for s in list(strategies(batch, cluster.n_devices))[::3]
    ]
    off = np.abs(np.log(ratios))
    assert len(ratios) >= 10
    assert np.mean(off <= np.log(FACTOR)) >= 0.95


@pytest.mark.parametrize(("name", "on", "batch"), PLANS)
def test_the_winner_is_that_of_the_exhaustive_search(
    networks: dict[str, Graph], name: str, on: str, batch: int
) -> None:
    cluster = load_cluster(on)
    pruned = search(networks[name], cluster, batch=batch)
    whole = search(networks[name], cluster, batch=batch, exhaustive=True)
    assert not whole.set_aside
    assert pruned.set_aside
    assert pruned.best.strategy == whole.best.strategy
    assert pruned.best.objective("time") == whole.best.objective("time")
    everything = len(whole.ranked) + len(whole.refused)
    assert len(pruned.ranked) + len(pruned.refused) + len(pruned.set_aside) == everything


def test_an_estimate_takes_milliseconds(networks: dict[str, Graph]) -> None:
    cluster = load_cluster("dgx-a100:4")
    cutter = Cutter(networks["resnet"], cluster, CostModel.default())
    tried = list(strategies(256, cluster.n_devices))
    start_s = time.process_time()
    for strategy in tried:
        screen(cutter, strategy)
    assert (time.process_time() - start_s) / len(tried) < 0.05  # 4 ms on a quiet core


def test_parts_move_as_theory_says(networks: dict[str, Graph]) -> None:
    cutter = Cutter(networks["gpt"], load_cluster("dgx-a100:2"), CostModel.default())

    def of(**fields: object) -> object:
        return screen(cutter, Strategy.of(batch=64, **fields))

    few, many = of(pipeline=4, microbatches=4), of(pipeline=4, microbatches=16)
    assert few.bubble_s > many.bubble_s > 0.0
    assert of(tensor=4).collectives_s > of(tensor=1).collectives_s == 0.0
    assert of(recompute="full").compute_s > of(recompute="none").compute_s
    assert of(data=8).reduction_s > of(data=1).reduction_s == 0.0
    assert of(pipeline=4, microbatches=8, schedule="zero_bubble").bubble_s < of(pipeline=4, microbatches=8).bubble_s

from pathlib import Path

import pytest

from hpdlf.errors import DataError, PlanError
from hpdlf.hwprofiles import load_cluster
from hpdlf.models.cost import (
    CostModel,
    Observation,
    ObservationDatabase,
    load_prior,
    transfer_workload,
    update_workload,
)

DGX = load_cluster("dgx-a100:2")


def test_without_a_database_it_is_the_shipped_model(tmp_path: Path) -> None:
    model = CostModel.load(tmp_path / "none.duckdb")
    assert model == CostModel.default()


def test_the_same_work_measured_is_returned_as_measured(tmp_path: Path) -> None:
    assert DGX.node.link is not None
    database = ObservationDatabase(tmp_path / "o.duckdb")
    before = CostModel.default().transfer(10**6, DGX.node.link)
    samples = [before.seconds * f for f in (2.9, 3.0, 3.2)]
    database.add([Observation.of(transfer_workload(10**6, DGX.node.link), samples, run="r")])
    model = CostModel.load(database.path)
    same = model.transfer(10**6, DGX.node.link)
    assert (same.provenance, same.seconds, same.low_s, same.high_s) == ("measured", samples[1], samples[0], samples[2])
    other = model.transfer(2 * 10**6, DGX.node.link)
    assert other.provenance == "learned"
    assert other.seconds > CostModel.default().transfer(2 * 10**6, DGX.node.link).seconds
    assert before.provenance == "modelled"


def test_a_message_takes_latency_and_bandwidth() -> None:
    link = DGX.link
    assert link is not None
    model = CostModel.default()
    small, large = model.transfer(0, link), model.transfer(10**9, link)
    assert small.seconds == pytest.approx(link.latency_s.value)
    assert large.seconds == pytest.approx(link.latency_s.value + 1e9 / link.message_bandwidth_bytes_per_s)
    assert large.joules is None
    assert model.transfer(10**9, link, device=DGX.device).joules is not None


def test_an_update_moves_its_words() -> None:
    adam = update_workload(10**6, optimizer="adam", device=DGX.device)
    assert adam.components["update"] == pytest.approx(7 * 4e6 / DGX.device.memory_bandwidth_bytes_per_s.value)
    assert update_workload(10**6, optimizer="sgd", device=DGX.device).components["update"] < adam.components["update"]
    with pytest.raises(PlanError, match="did you mean 'adam'"):
        CostModel.default().update(1, optimizer="adm", device=DGX.device)


def test_one_sided_operations() -> None:
    model = CostModel.default()
    near = model.one_sided("put", 10**7, ranks=range(4), cluster=DGX)
    far = model.one_sided("put", 10**7, ranks=(0, 8), cluster=DGX)
    assert 0 < near.seconds < far.seconds
    assert model.one_sided("notify", 10**7, ranks=range(4), cluster=DGX).seconds < near.seconds
    assert model.one_sided("put", 10**7, ranks=(3,), cluster=DGX).seconds == 0.0
    with pytest.raises(PlanError, match="put, get, notify"):
        model.one_sided("push", 1, ranks=(0, 1), cluster=DGX)


def test_host_io_is_wide_and_its_energy_unknown() -> None:
    estimate = CostModel.default().host_io("checkpoint", 10**9, node=DGX.node)
    assert estimate.joules is None
    assert estimate.bound == "host"
    assert estimate.relative_width is not None
    assert estimate.relative_width > 1
    with pytest.raises(PlanError, match="load, checkpoint"):
        CostModel.default().host_io("save", 1, node=DGX.node)


def test_money_and_carbon_or_none() -> None:
    import dataclasses

    model = CostModel.default()
    bare = dataclasses.replace(
        DGX, price_usd_per_node_s=None, energy_price_usd_per_j=None, carbon_kg_per_j=None, pue=None
    )
    assert model.money_usd(3600.0, bare) is None
    assert model.carbon_kg(1.0, bare) is None
    assert model.energy_usd(1.0, bare) is None
    assert model.carbon_kg(None, DGX) is None
    if DGX.price_usd_per_node_hour is not None:
        assert model.money_usd(3600.0, DGX) == pytest.approx(2 * DGX.price_usd_per_node_hour.value)


def test_the_prior_covers_every_family_for_both_kinds() -> None:
    from hpdlf.models.onnxpp import FAMILIES

    prior = load_prior()
    for kind in ("cpu", "gpu"):
        assert prior.prior_factor(kind, "nothing known").value > 0
        for family in set(FAMILIES) - {"view"}:
            for suffix in ("", ".backward", ".half", ".backward.half"):
                factor = prior.prior_factor(kind, family + suffix)
                assert 0.5 < factor.value < 30
                assert 0 < factor.spread < 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "damaged"),
        ("{}", "damaged"),
        ('{"format": "hpdlf.cost_prior", "version": 99}', "update hpdlf"),
        ('{"format": "else", "version": 1}', "no file of cost factors"),
    ],
)
def test_a_damaged_prior_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "prior.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        load_prior(path)
    with pytest.raises(DataError, match="cannot be read"):
        load_prior(tmp_path / "missing.json")

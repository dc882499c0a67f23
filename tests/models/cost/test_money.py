"""Prices of node-hours by kind, energy, carbon: closed forms, and None for whatever is not known."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpdlf.errors import ProfileError
from hpdlf.hwprofiles import PRICE_KINDS, Quantity, load_cluster, load_region
from hpdlf.hwprofiles.units import YEAR_S
from hpdlf.models.cost import CostModel, bill, full_power_w, node_hour_usd, node_price
from hpdlf.models.cost.money import carbon_kg, energy_usd

DGX = load_cluster("dgx-a100:2")
MODEL = CostModel.default()


def quantity(value, unit="1", low=None, high=None, date="2024-01-01"):
    return Quantity(value=value, unit=unit, source="made up", tier="modelled", low=low, high=high, date=date)


OWN = dataclasses.replace(
    DGX,
    purchase_usd_per_node=quantity(87_600.0, "USD", low=80_000.0, high=100_000.0),
    lifetime_s=quantity(5 * YEAR_S, "s", low=4 * YEAR_S, high=6 * YEAR_S),
    occupancy=quantity(0.5, low=0.4, high=0.8),
    hosting_usd_per_node_s=quantity(1.0 / 3600, "USD/s"),
)


def test_rents_are_what_the_profile_says():
    for kind, said in (("on_demand", DGX.price_usd_per_node_s), ("spot", DGX.spot_usd_per_node_s)):
        price = node_price(DGX, kind)
        assert price.usd_per_s == said.value
        assert price.includes_energy
        assert (price.source, price.tier, price.date) == (said.source, said.tier, said.date)
        assert node_hour_usd(DGX, kind) == price.usd_per_hour
    assert node_price(DGX, "spot").usd_per_s <= node_price(DGX, "on_demand").usd_per_s


def test_own_nodes_cost_purchase_over_lifetime_and_hosting_in_the_hours_with_work():
    price = node_price(OWN, "own")
    # 87,600 USD over five years are 2 USD an hour; 1 USD for hosting; half of the hours have work.
    assert price.usd_per_hour == pytest.approx((2.0 + 1.0) / 0.5)
    assert price.low_usd_per_s * 3600 == pytest.approx((80_000 / (6 * 8760) + 1.0) / 0.8)
    assert price.high_usd_per_s * 3600 == pytest.approx((100_000 / (4 * 8760) + 1.0) / 0.4)
    assert not price.includes_energy
    # 5 kW at a PUE of 1.58 and 0.0806 USD/kWh.
    assert node_hour_usd(OWN, "own", node_w=5000.0) == pytest.approx(6.0 + 5 * 1.58 * 0.0806)


def test_without_occupancy_or_hosting_the_source_says_so():
    bare = dataclasses.replace(OWN, occupancy=None, hosting_usd_per_node_s=None)
    price = node_price(bare, "own")
    assert price.usd_per_hour == pytest.approx(2.0)
    assert "work in every hour" in price.source
    assert "hosting not counted" in price.source


def test_full_power_is_devices_host_and_network_within_the_nodes_limit():
    node, device = DGX.node, DGX.device
    assert full_power_w(DGX) == 8 * device.limit_w.value + node.host_active_w.value + DGX.network_w_per_node.value
    tight = dataclasses.replace(DGX, node=dataclasses.replace(node, limit_w=quantity(4000.0, "W")))
    assert full_power_w(tight) == 4000.0 + DGX.network_w_per_node.value


@given(st.floats(1e-3, 1e6), st.floats(0, 1e12))
def test_a_bill_adds_up(seconds, joules):
    for kind in PRICE_KINDS:
        made = bill(seconds, joules, OWN, kind)
        assert made.node_usd == pytest.approx(node_price(OWN, kind).usd_per_s * 2 * seconds)
        assert made.energy_usd == pytest.approx(joules * 1.58 * 0.0806 / 3.6e6)
        assert made.carbon_kg == pytest.approx(joules * 1.58 * 0.3695 / 3.6e6)
        assert made.total_usd == pytest.approx(made.node_usd + (made.energy_usd if kind == "own" else 0.0))


def test_what_is_not_known_is_none():
    bare = dataclasses.replace(
        DGX, price_usd_per_node_s=None, spot_usd_per_node_s=None, purchase_usd_per_node=None, pue=None
    )
    assert [node_price(bare, kind) for kind in PRICE_KINDS] == [None, None, None]
    assert [node_hour_usd(bare, kind) for kind in PRICE_KINDS] == [None, None, None]
    assert (energy_usd(1.0, bare), carbon_kg(1.0, bare)) == (None, None)
    assert (energy_usd(None, DGX), carbon_kg(None, DGX)) == (None, None)
    made = bill(1.0, 1.0, bare)
    assert (made.node_usd, made.energy_usd, made.total_usd, made.carbon_kg) == (None, None, None, None)
    # The amortisation of own nodes is known without their energy, but what they cost in all is not.
    without = bill(3600.0, None, OWN, "own")
    assert without.node_usd == pytest.approx(12.0)
    assert without.total_usd is None
    assert full_power_w(load_cluster("gcp-tpu-v5e-256")) is None


def test_the_clusters_own_kind_of_price_is_the_default():
    assert node_price(OWN.priced("own")) == node_price(OWN, "own")
    assert MODEL.money_usd(3600.0, OWN.priced("own")) == pytest.approx(2 * 6.0)
    assert MODEL.money_usd(3600.0, OWN, "spot") == pytest.approx(2 * 14.75)
    assert node_price(load_cluster("xeon-8480-64")).kind == "own"
    for attempt in (lambda: OWN.priced("free"), lambda: node_price(OWN, "free")):
        with pytest.raises(ProfileError, match="there is no price 'free'; it is one of on_demand, spot, own"):
            attempt()


def test_another_region_changes_electricity_alone():
    there = OWN.in_region(load_region("norway"))
    assert carbon_kg(1e9, there) < 0.1 * carbon_kg(1e9, OWN)
    assert node_price(there) == node_price(OWN)
    assert energy_usd(1e9, OWN.in_region(load_region("switzerland"))) is None


def test_the_price_of_a_node_with_another_number_of_devices_is_not_known():
    four = load_cluster("dgx-a100:2x4")
    assert [node_price(four, kind) for kind in PRICE_KINDS] == [None, None, None]

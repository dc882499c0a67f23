"""Scores of predicted systems."""

import pytest

from hpdlf.experiments.published.system_cases import Case
from hpdlf.experiments.system_scores import Row, score, weighted_quantile


def row(
    predicted,
    measured=100.0,
    *,
    source="us",
    group="cnn-dp",
    weight=1.0,
    width=0.1,
    unit="s",
    quantity="iteration_time",
    **more,
):
    case = Case(
        case_id="a", source=source, model="m", hardware="h", n_devices=1, devices_per_node=1, measured_quantity=quantity,
        measured_value=measured, unit=unit, group=group, weight=weight, **more,
    )  # fmt: skip
    if predicted is None:
        return Row(case=case, refused="it cannot be.")
    return Row(case=case, predicted=predicted, low=predicted * (1 - width), high=predicted * (1 + width))


def test_quantiles_of_equal_weights_are_the_usual_ones():
    values = [0.4, 0.1, 0.2, 0.3]
    assert weighted_quantile(values, [1.0] * 4, 0.5) == pytest.approx(0.25)
    assert weighted_quantile(values, [1.0] * 4, 0.9) == pytest.approx(0.37)
    assert weighted_quantile(values, [1.0, 0.0, 0.0, 0.0], 0.9) == 0.4
    assert weighted_quantile([], [], 0.5) is None


def test_rows_with_half_the_weight_count_half():
    halves = weighted_quantile([0.1, 0.1, 0.5, 0.9], [0.5, 0.5, 1.0, 1.0], 0.5)
    assert halves == pytest.approx(weighted_quantile([0.1, 0.5, 0.9], [1.0, 1.0, 1.0], 0.5), rel=0.3)


def test_a_group_tells_errors_refusals_bias_and_coverage():
    report = score([row(90.0), row(105.0), row(130.0), row(None)])
    (group,) = report["groups"]
    assert (group["group"], group["rows"], group["refused"]) == ("cnn-dp", 4, 1)
    assert group["median_ape"] == pytest.approx(0.2)
    assert group["bias"] == pytest.approx(0.05)
    assert group["coverage90"] == pytest.approx(1 / 3)
    assert group["relative_width"] == pytest.approx(0.2)


def test_sources_count_the_same_however_many_rows_they_have():
    rows = [row(110.0, source="one")] * 9 + [row(150.0, source="two"), row(900.0, source="recalled by us", weight=1.0)]
    overall = score(rows)["overall"]
    assert overall["mean_over_sources"] == pytest.approx(0.3)
    assert overall["rows"] == 10


def test_energy_is_apart():
    overall = score([row(110.0), row(2.0, 1.0, group="energy", unit="W", quantity="avg_node_power")])["overall"]
    assert overall["mean_over_sources"] == pytest.approx(0.1)
    assert overall["energy_worst_ape"] == pytest.approx(1.0)


def test_ranks_need_five_rows_of_one_source_and_model():
    assert score([row(float(n), float(n)) for n in range(1, 5)])["ranks"] == []
    (rank,) = score([row(float(n * n), float(n)) for n in range(1, 6)])["ranks"]
    assert rank["spearman"] == pytest.approx(1.0)
    (back,) = score([row(10.0 - n, float(n)) for n in range(1, 6)])["ranks"]
    assert back["spearman"] == pytest.approx(-1.0)


def test_rows_speak_the_unit_of_the_table():
    said = row(3.6e6, 2.0, unit="kWh", quantity="energy").to_dict()
    assert (said["measured"], said["predicted"], said["ape"]) == (2.0, 1.0, 0.5)
    assert row(None).to_dict()["ape"] == 1.0
    assert list(said) == ["case_id", "group", "measured", "predicted", "low", "high", "ape", "refused"]

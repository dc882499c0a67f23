"""Frameworks' numbers are found again in steps that were made with them."""

import numpy as np
import pytest

from hpdlf.experiments import fit_software
from hpdlf.experiments.fit_software import Row, fit, left_out, write

NOW = {"megatron": (0.0, 0.0, 0.0), "nemo 1": (0.0, 0.0, 0.0), "any": (0.0, 0.0, 0.0)}
GAPS = {"nemo 1": 0.0}


def rows(truth, *, software="megatron", gap_s=0.0, count=40, source="s") -> list[Row]:
    rng = np.random.default_rng(1)
    found = []
    for i in range(count):
        shares = rng.dirichlet((2.0, 1.0, 1.0))
        step_s = float(rng.uniform(0.3, 3.0))
        residual = float(shares @ np.log(truth)) + gap_s / step_s
        elasticity = tuple(float(s) for s in shares)
        found.append(
            Row(
                case_id=str(i),
                source=source,
                software=software,
                weight=1.0,
                residual=residual,
                elasticity=elasticity,
                step_s=step_s,
            )
        )
    return found


def test_factors_are_found_again() -> None:
    logarithms, spread, count, gap_s = fit(rows((1.2, 1.5, 0.8)), NOW, GAPS)["megatron"]
    assert np.exp(logarithms) == pytest.approx((1.2, 1.5, 0.8), rel=0.08)
    assert (count, gap_s) == (40, 0.0)
    assert spread < 0.05


def test_a_gap_between_steps_is_found_again_and_rows_stay_as_measured() -> None:
    logarithms, _, _, gap_s = fit(rows((1.1, 1.0, 1.1), software="nemo 1", gap_s=0.2), NOW, GAPS)["nemo 1"]
    assert gap_s == pytest.approx(0.2, rel=0.3)  # drawn towards none
    assert logarithms[1] == 0.0


def test_a_row_that_something_else_is_wrong_with_hardly_counts() -> None:
    odd = rows((20.0, 20.0, 20.0), count=2)
    logarithms = fit([*rows((1.2, 1.2, 1.2)), *odd], NOW, GAPS)["megatron"][0]
    assert np.exp(logarithms) == pytest.approx((1.2, 1.2, 1.2), rel=0.08)


def test_what_no_row_supports_is_as_the_mean_of_all() -> None:
    found = fit(rows((1.2, 1.2, 1.2)), NOW, GAPS)
    assert found["any"][2] == 0
    assert 0.0 < found["any"][0][0] < np.log(1.2)
    assert found["any"][1] > found["megatron"][1]


def test_sources_left_out_are_predicted_by_the_others() -> None:
    alike = [*rows((1.2, 1.2, 1.2), source="a"), *rows((1.2, 1.2, 1.2), source="b")]
    apart = [*rows((1.2, 1.2, 1.2), source="a"), *rows((0.9, 0.9, 0.9), source="b")]
    assert left_out(alike, NOW, GAPS) < 0.02 < 0.2 < left_out(apart, NOW, GAPS)


def test_numbers_are_written_and_all_else_stays(tmp_path) -> None:
    text = (
        '# a comment\n[[software]]\nname = "nemo 1"\nnames = ["nemo"]\nproducts = { value = 1.0, spread = 0.1, on = "" }\n'
        'step_s = { value = 0.0, spread = 0.1, on = "" }\n[[software]]\nname = "other"\nrows = { value = 2.0 }\n'
    )
    (tmp_path / "f.toml").write_text(text)
    write({"nemo 1": ((np.log(1.25), 0.0, 0.0), 0.07, 3, 0.25)}, tmp_path / "f.toml")
    assert (tmp_path / "f.toml").read_text().splitlines() == [
        "# a comment", "[[software]]", 'name = "nemo 1"', 'names = ["nemo"]',
        'products = { value = 1.25, spread = 0.070, on = "3 published steps" }',
        'step_s = { value = 0.25, spread = 0.070, on = "3 published steps" }', "[[software]]", 'name = "other"',
        "rows = { value = 2.0 }",
    ]  # fmt: skip


def test_a_gap_of_less_than_nothing_is_none() -> None:
    assert fit(rows((1.0, 1.0, 1.0), software="nemo 1", gap_s=-0.2), NOW, GAPS)["nemo 1"][3] == 0.0
    assert len(fit_software.FACTORS) == 3

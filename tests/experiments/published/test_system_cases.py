"""Reading tables of measured systems."""

import math

import pytest

from hpdlf.errors import DataError
from hpdlf.experiments.published.system_cases import QUANTITIES, read_cases

HEAD = "case_id,source,model,hardware,n_devices,devices_per_node,measured_quantity,measured_value,unit,layers,also_measured,weight,extra\n"


def table(tmp_path, *lines):
    path = tmp_path / "cases.csv"
    path.write_text(HEAD + "".join(f"{line}\n" for line in lines))
    return path


def test_what_a_row_does_not_say_is_none(tmp_path):
    (case,) = read_cases(table(tmp_path, "a,us,GPT,V100,8,8,iteration_time,1.5,s,,,0.5,x"))
    assert (case.case_id, case.n_devices, case.measured_value, case.weight) == ("a", 8, 1.5, 0.5)
    assert case.layers is None
    assert case.tp is None
    assert case.schedule == ""
    assert case.problem == ""


def test_a_row_that_cannot_be_read_says_so_and_the_others_stay(tmp_path):
    first, second, third = read_cases(
        table(
            tmp_path,
            "a,us,GPT,V100,8,8,iteration_time,fast,s,2.5,,1,",
            "b,us,GPT,V100,8,8,iteration_time,1,s,12.0,,1,",
            "c,us,,V100,-8,8,iteration_time,1,s,,,1,",
        )
    )
    assert "'measured_value' is 'fast', no number" in first.problem
    assert "'layers' is '2.5', no whole number" in first.problem
    assert math.isnan(first.measured_value)
    assert (second.problem, second.layers) == ("", 12)
    assert "'model' is empty" in third.problem
    assert "'n_devices' is '-8'" in third.problem


def test_a_file_that_is_no_such_table_is_refused(tmp_path):
    path = tmp_path / "cases.csv"
    path.write_text("case_id,model\na,b\n")
    with pytest.raises(DataError, match="no column source, hardware"):
        read_cases(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_cases(tmp_path / "none.csv")


def test_values_in_si_units(case):
    assert case().measured_si == 7.2e6
    assert case(measured_quantity="achieved_flops_per_device", unit="TFLOP/s").measured_si == 2e12
    with pytest.raises(DataError, match="expected s or ms"):
        _ = case(measured_quantity="iteration_time").measured_si
    with pytest.raises(DataError, match="none of throughput"):
        _ = case(measured_quantity="accuracy").measured_si
    assert all(units for units in QUANTITIES.values())


def test_peak_memory_and_weight(case):
    assert case(also_measured="peak alloc 66.5 GiB; error -1.69%").peak_bytes == 66.5 * 2**30
    assert case().peak_bytes is None
    assert (case(weight=0.25).scored, case(source="recalled (somebody)").scored) == (0.25, 0.0)

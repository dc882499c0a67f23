"""Units: closed forms, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpdlf.hwprofiles.units import (
    AMOUNT,
    CARBON_PER_ENERGY,
    COMPUTE_RATE,
    DATA,
    DATA_RATE,
    EXAMPLE_UNIT,
    POWER,
    PRICE_PER_ENERGY,
    PRICE_PER_TIME,
    SI_UNIT,
    TIME,
    UnitError,
    describe_dimension,
    format_value,
    parse_unit,
    to_si,
)


@pytest.mark.parametrize(
    ("unit", "factor", "dimension"),
    [
        ("B", 1.0, DATA),
        ("kB", 1e3, DATA),
        ("GB", 1e9, DATA),
        ("GiB", 2.0**30, DATA),
        ("GB/s", 1e9, DATA_RATE),
        ("Gbit/s", 1.25e8, DATA_RATE),
        ("TFLOP/s", 1e12, COMPUTE_RATE),
        ("us", 1e-6, TIME),
        ("µs", 1e-6, TIME),
        ("min", 60.0, TIME),
        ("W", 1.0, POWER),
        ("kW", 1e3, POWER),
        ("J/s", 1.0, POWER),
        ("USD/h", 1 / 3600, PRICE_PER_TIME),
        ("USD/kWh", 1 / 3.6e6, PRICE_PER_ENERGY),
        ("gCO2/kWh", 1e-3 / 3.6e6, CARBON_PER_ENERGY),
        ("kgCO2/kWh", 1 / 3.6e6, CARBON_PER_ENERGY),
        ("%", 0.01, AMOUNT),
    ],
)
def test_a_unit_has_its_factor_and_dimension(unit, factor, dimension):
    found = parse_unit(unit)
    assert found.factor == pytest.approx(factor, rel=1e-15)
    assert found.dimension == dimension


@pytest.mark.parametrize(
    ("unit", "hint"),
    [
        ("GB/sec", "GB/s"),
        ("TFLOPS", "TFLOP/s"),
        ("Gb/s", "Gbit/s"),
        ("KB", "kB"),
        ("gb/s", "GB/s"),
        ("kwh", "Wh"),
        ("EUR/h", "USD/h"),
    ],
)
def test_an_unknown_unit_is_refused_with_a_suggestion(unit, hint):
    with pytest.raises(UnitError) as caught:
        parse_unit(unit)
    assert hint in str(caught.value)


@pytest.mark.parametrize("unit", ["mB", "ks", "", "/", "GB//s", "B/", "uFLOP/s", "KiW", "Mmin"])
def test_nonsense_is_refused(unit):
    with pytest.raises(UnitError):
        parse_unit(unit)


@given(st.text(max_size=12))
def test_any_text_is_a_unit_or_a_unit_error(text):
    try:
        found = parse_unit(text)
    except UnitError as error:
        message = str(error)
        # A message that forgets what was written helps nobody.
        if repr(text) not in message:
            pytest.fail(message)
    else:
        assert found.factor > 0


@given(st.sampled_from(["B", "bit", "FLOP", "Hz", "J", "W", "Wh"]), st.sampled_from("kMGTPE"))
def test_a_prefix_multiplies(unit, prefix):
    factor = 1000.0 ** ("kMGTPE".index(prefix) + 1)
    if prefix + unit == "PW":
        assert parse_unit("PW").factor == 1e15
    assert parse_unit(prefix + unit).factor == pytest.approx(parse_unit(unit).factor * factor, rel=1e-15)


@pytest.mark.parametrize("dimension", list(SI_UNIT))
def test_si_units_have_factor_one_and_examples_their_dimension(dimension):
    assert parse_unit(SI_UNIT[dimension]) == (1.0, dimension)
    assert parse_unit(EXAMPLE_UNIT[dimension]).dimension == dimension
    assert describe_dimension(dimension)


@given(st.sampled_from(list(SI_UNIT)), st.floats(1e-12, 1e18))
def test_a_formatted_value_reads_back(dimension, value):
    number, _, unit = format_value(value, dimension, digits=12).replace(",", "").partition(" ")
    # Values below the smallest or above the largest prefix are rounded to whole numbers of it.
    assert float(number) * parse_unit(unit or "1").factor == pytest.approx(
        value, rel=1e-9, abs=parse_unit(unit or "1").factor
    )


@given(st.integers(1, 10**9), st.sampled_from(["GB", "us", "TFLOP/s", "W", "MB/s"]), st.integers(-6, 3))
def test_a_decimal_number_in_any_prefix_is_rounded_once(digits, unit, places):
    number = float(f"{digits}e{places}")
    power = {"GB": 9, "us": -6, "TFLOP/s": 12, "W": 0, "MB/s": 6}[unit]
    assert to_si(number, parse_unit(unit).factor) == float(f"{digits}e{places + power}")

"""Rows of made-up tables."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hpdlf.experiments.published.system_cases import Case

PLAIN = {
    "case_id": "a",
    "source": "us",
    "model": "GPT",
    "hardware": "V100",
    "n_devices": 1,
    "devices_per_node": 1,
    "measured_quantity": "energy",
    "measured_value": 2.0,
    "unit": "kWh",
}


@pytest.fixture
def case() -> Callable[..., Case]:
    """case(**columns): a row with these columns."""
    return lambda **columns: Case(**{**PLAIN, **columns})

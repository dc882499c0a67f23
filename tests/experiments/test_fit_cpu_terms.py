"""What one core spends the time of chains on: planted times are found again, convolutions among them being known."""

from __future__ import annotations

import numpy as np

from hpdlf.exec.microbenchmarks_design import cases
from hpdlf.experiments.calibration import workload_of_case
from hpdlf.experiments.fit_cpu_terms import CALL_S, Row, errors, fit_thetas
from hpdlf.hwprofiles import load_device
from hpdlf.models.cost.cpu_terms import CpuTerms, convolution_of


def test_planted_times_are_found_again() -> None:
    core, truth = load_device("generic-x86-core"), CpuTerms.default()
    rows = []
    for case in cases(250):
        operations = workload_of_case(case, core).operations
        seconds = sum(truth.seconds(o) or 0.0 for o in operations) + CALL_S
        rows.append(Row(case=case, operations=operations, seconds=seconds, noise=0.02))
    assert any(convolution_of(o) for row in rows for o in row.operations)
    thetas = fit_thetas(rows)
    assert not any(group.startswith("conv ") for group in thetas)
    off = np.abs(errors(rows, thetas))
    assert np.median(off) < 0.03
    assert np.quantile(off, 0.9) < 0.1

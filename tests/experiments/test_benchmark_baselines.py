"""What ranks of a baseline write down becomes one measurement."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpdlf.experiments.benchmark_baselines import Recording, read_measured, windows


def test_the_second_half_of_a_run_counts() -> None:
    """Windows end one after the other; the first is over when the clock is first looked at."""
    assert windows([5.0, 9.0, 10.0]) == (1.0,)
    assert windows([5.0, 8.0, 10.0, 11.0, 12.5]) == (1.0, 1.5)
    assert windows([5.0, 6.0]) == (1.0,)


def test_a_window_ends_with_its_last_rank(tmp_path: Path) -> None:
    ranks = (
        {"ends_s": [1.0, 2.0, 3.5, 4.0], "losses": [4.0, 2.0], "peak_bytes": 10},
        {"ends_s": [1.5, 2.5, 3.0, 5.0], "losses": [2.0, 1.0], "peak_bytes": 20},
    )
    for rank, found in enumerate(ranks):
        (tmp_path / f"ddp.rank{rank}.json").write_text(json.dumps(found))
    measured = read_measured(tmp_path, "ddp", 2)
    assert measured.window_s == (1.0, 1.5)
    assert measured.losses == (3.0, 1.5)
    assert measured.peak_bytes == 20


def test_a_recording_is_what_is_read(tmp_path: Path) -> None:
    recording = Recording(2)
    for number in range(8):
        if recording.step(float(number)):
            recording.window()
    recording.write(tmp_path, "eager")
    measured = read_measured(tmp_path, "eager", 1)
    assert measured.losses == tuple(map(float, range(8)))
    assert len(measured.window_s) == 2
    assert min(measured.window_s) >= 0
    assert measured.peak_bytes > 2**20
    with pytest.raises(FileNotFoundError):
        read_measured(tmp_path, "eager", 2)

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpdlf.errors import PlanError
from hpdlf.models.plan import Strategy


@given(st.integers(1, 50), st.integers(1, 8), st.integers(1, 8), st.integers(1, 8))
def test_every_sample_is_in_one_microbatch_of_one_replica(
    samples: int, data: int, pipeline: int, microbatches: int
) -> None:
    s = Strategy(batch=samples * data * microbatches, data=data, pipeline=pipeline, microbatches=microbatches)
    assert s.microbatch_samples * s.data * s.microbatches == s.batch
    assert s.ranks == data * pipeline


def test_of_leaves_out_what_was_not_said() -> None:
    assert Strategy.of(batch=8, data=None, pipeline=2) == Strategy(batch=8, pipeline=2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch": 7, "data": 2}, "batch 7 does not divide into 2 replicas x 1 microbatches: use a multiple of 2"),
        ({"batch": 8, "pipeline": 2, "solver": "asynchronous"}, "the asynchronous solver has no pipeline"),
        ({"batch": 8, "pipelines": 2}, "there is no field 'pipelines', did you mean 'pipeline'"),
        ({"batch": 8, "schedule": "zigzag"}, "schedule = 'zigzag': input should be '1f1b', 'gpipe' or 'zero_bubble'"),
        ({"batch": 0}, "batch = 0: input should be greater than 0"),
        ({"batch": 0, "data": -1}, "batch = 0: .*; data = -1: "),
    ],
)
def test_what_a_user_says_wrong_is_answered_in_words(fields: dict[str, object], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Strategy.of(**fields)

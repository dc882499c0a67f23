"""How one model is cut over the ranks of a cluster.

>>> s = Strategy(data=4, pipeline=2, microbatches=8, batch=256)
>>> s.ranks, s.microbatch_samples, str(s)
(8, 8, 'data 4 x pipeline 2, 8 microbatches of 8, 1f1b')
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ...errors import PlanError

__all__ = ["PRECISIONS", "Strategy"]

Precision = Literal["float64", "float32", "tf32", "bfloat16", "float16"]
PRECISIONS = ("float64", "float32", "tf32", "bfloat16", "float16")


class Strategy(BaseModel):
    """Mesh, microbatches, schedule and solver.

    batch          samples per optimiser update over all ranks
    data           replicas (data parallel)
    pipeline       stages
    microbatches   parts that each replica's share of the batch is cut into
    schedule       "1f1b" (a stage holds at most `pipeline` microbatches) or "gpipe" (all forward, then all backward)
    solver         "synchronous" (gradients are averaged) or "asynchronous" (each rank updates shared parameters when it can)
    bucket_bytes   gradients are all-reduced in buckets of at least this size, while backward goes on
    precision      arithmetic and storage of the working copies
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch: int = Field(gt=0)
    data: int = Field(default=1, gt=0)
    pipeline: int = Field(default=1, gt=0)
    microbatches: int = Field(default=1, gt=0)
    schedule: Literal["1f1b", "gpipe"] = "1f1b"
    solver: Literal["synchronous", "asynchronous"] = "synchronous"
    bucket_bytes: int = Field(default=25 * 2**20, gt=0)
    precision: Precision = "float32"

    @model_validator(mode="after")
    def _divides(self) -> Strategy:
        problems = []
        if self.batch % (self.data * self.microbatches):
            problems.append(
                f"batch {self.batch} does not divide into {self.data} replicas x {self.microbatches} microbatches: "
                f"use a multiple of {self.data * self.microbatches}"
            )
        if self.solver == "asynchronous" and self.pipeline > 1:
            problems.append("the asynchronous solver has no pipeline: use pipeline 1, or the synchronous solver")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @classmethod
    def of(cls, **fields: Any) -> Strategy:
        """A strategy from what a user said; fields that are None have their defaults.

        Raises:
            PlanError: a field is unknown or has no possible value, or the numbers do not divide; all problems together.
        """
        try:
            return cls(**{k: v for k, v in fields.items() if v is not None})
        except ValidationError as error:
            lines = [_in_words(problem) for problem in error.errors()]
            raise PlanError("This strategy cannot be: " + "; ".join(lines) + ".") from None

    @property
    def ranks(self) -> int:
        """Ranks, one a device."""
        return self.data * self.pipeline

    @property
    def microbatch_samples(self) -> int:
        """Samples in one microbatch of one replica."""
        return self.batch // (self.data * self.microbatches)

    def __str__(self) -> str:
        text = f"data {self.data} x pipeline {self.pipeline}, {self.microbatches} microbatches of {self.microbatch_samples}"
        if self.pipeline > 1:
            text += f", {self.schedule}"
        return text if self.solver == "synchronous" else f"{text}, asynchronous"


def _in_words(problem: Any) -> str:
    """One of pydantic's problems as a part of a sentence."""
    field = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        close = get_close_matches(field, Strategy.model_fields, n=1)
        return f"there is no field {field!r}" + (f", did you mean {close[0]!r}" if close else "")
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    return f"{field} = {problem['input']!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}"

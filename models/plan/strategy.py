"""How one model is cut over the ranks of a cluster.

>>> s = Strategy(data=4, pipeline=2, microbatches=8, batch=256)
>>> s.ranks, s.microbatch_samples, str(s)
(8, 8, 'data 4 x pipeline 2, 8 microbatches of 8, 1f1b')
>>> str(Strategy(batch=64, data=2, tensor=8, pipeline=4, microbatches=32, interleave=2, zero=1, recompute="full"))
'data 2 x pipeline 4 x tensor 8, 32 microbatches of 1, 1f1b interleaved 2, zero 1, recompute full'
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ...errors import PlanError

__all__ = ["PRECISIONS", "Strategy"]

Precision = Literal["float64", "float32", "tf32", "bfloat16", "float16", "float8"]
PRECISIONS = ("float64", "float32", "tf32", "bfloat16", "float16", "float8")


class Strategy(BaseModel):
    """Mesh, microbatches, schedule, memory savers and solver.

    batch              samples per optimiser update over all ranks
    data               replicas (data parallel)
    pipeline           ranks that a replica's stages lie on, one behind the other
    tensor             ranks that share every large operator (Megatron's tensor parallelism; Shoeybi et al. 2019)
    context            ranks that share every sample's sequence (ring attention; Liu et al. 2023)
    expert             ranks, of the `data` x `context` ones, that the experts of a mixture are dealt to
    sequence_parallel  between the operators that `tensor` splits, its ranks split the sequence (Korthikanti et al. 2022)
    microbatches       parts that each replica's share of the batch is cut into: gradients accumulate over them
    schedule           "1f1b" (a stage holds at most `pipeline` microbatches), "gpipe" (all forward, then all backward) or
                       "zero_bubble" (1f1b whose gradients of weights fill the bubble; Qi et al. 2023, ZB-H1)
    interleave         stages per rank, dealt round (virtual stages; Narayanan et al. 2021)
    cut                stages take equally long ("time") or have equally many blocks of the network ("layers")
    zero               what replicas share instead of each holding it: 0 nothing, 1 the optimiser's state, 2 gradients too,
                       3 parameters too (Rajbhandari et al. 2020; FSDP)
    recompute          what is computed again instead of kept: "none", "selective" (the inside of attention) or "full" (all but
                       the border of every block)
    solver             "synchronous" (gradients are averaged), "asynchronous" (each rank updates shared parameters when it can)
                       or "local" (replicas train alone, and average their parameters every `synchronise_every` steps)
    bucket_bytes       gradients are reduced in buckets of at least this size, while backward goes on
    precision          arithmetic and storage of the working copies; "float8" is that of matrix products, over bfloat16
    mixed              gradients add up in float32, and the optimiser keeps a float32 copy of 16-bit parameters
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch: int = Field(gt=0)
    data: int = Field(default=1, gt=0)
    pipeline: int = Field(default=1, gt=0)
    tensor: int = Field(default=1, gt=0)
    context: int = Field(default=1, gt=0)
    expert: int = Field(default=1, gt=0)
    sequence_parallel: bool = False
    microbatches: int = Field(default=1, gt=0)
    schedule: Literal["1f1b", "gpipe", "zero_bubble"] = "1f1b"
    interleave: int = Field(default=1, gt=0)
    cut: Literal["time", "layers"] = "time"
    zero: int = Field(default=0, ge=0, le=3)
    recompute: Literal["none", "selective", "full"] = "none"
    solver: Literal["synchronous", "asynchronous", "local"] = "synchronous"
    synchronise_every: int = Field(default=1, gt=0)
    bucket_bytes: int = Field(default=25 * 2**20, gt=0)
    precision: Precision = "float32"
    mixed: bool = False

    @model_validator(mode="after")
    def _divides(self) -> Strategy:
        problems = []
        if self.batch % (self.data * self.microbatches):
            problems.append(
                f"batch {self.batch} does not divide into {self.data} replicas x {self.microbatches} microbatches: "
                f"use a multiple of {self.data * self.microbatches}"
            )
        if self.data % self.expert and self.expert != self.data * self.context:
            problems.append(
                f"{self.expert} expert ranks cannot be dealt over data {self.data} x context {self.context}: "
                "use a divisor of the replicas, or all ranks of both"
            )
        if self.interleave > 1 and self.pipeline == 1:
            problems.append("interleave needs a pipeline: use pipeline 2 or more")
        if self.interleave > 1 and self.schedule != "1f1b":
            problems.append(f"interleave goes with schedule 1f1b, not {self.schedule}")
        if self.interleave > 1 and self.microbatches % self.pipeline:
            problems.append(
                f"interleaved stages need microbatches that are a multiple of the pipeline: {self.microbatches} is none of "
                f"{self.pipeline}"
            )
        if self.sequence_parallel and self.tensor == 1:
            problems.append("sequence_parallel splits what tensor ranks share: use tensor 2 or more")
        if self.solver != "synchronous":
            apart = {"pipeline": self.pipeline, "tensor": self.tensor, "context": self.context, "zero": self.zero + 1}
            problems += [
                f"the {self.solver} solver has no {name}: leave it out, or use the synchronous solver"
                for name, size in apart.items()
                if size > 1
            ]
        if self.synchronise_every > 1 and self.solver != "local":
            problems.append("synchronise_every belongs to the local solver")
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
        return self.data * self.pipeline * self.tensor * self.context

    @property
    def stages(self) -> int:
        """Parts that the model is cut into, one behind the other."""
        return self.pipeline * self.interleave

    @property
    def microbatch_samples(self) -> int:
        """Samples in one microbatch of one replica."""
        return self.batch // (self.data * self.microbatches)

    @property
    def simulated_only(self) -> tuple[str, ...]:
        """What of this strategy the executor cannot do yet; empty where it can run."""
        asked = {
            f"tensor {self.tensor}": self.tensor > 1,
            f"context {self.context}": self.context > 1,
            f"expert {self.expert}": self.expert > 1,
            f"interleave {self.interleave}": self.interleave > 1,
            f"schedule {self.schedule}": self.schedule == "zero_bubble",
            f"zero {self.zero}": self.zero > 0,
            f"recompute {self.recompute}": self.recompute != "none",
            f"solver {self.solver}": self.solver == "local",
            "mixed": self.mixed,
            f"cut {self.cut}": self.cut == "layers",
            f"precision {self.precision}": self.precision == "float8",
        }
        return tuple(what for what, wanted in asked.items() if wanted)

    def __str__(self) -> str:
        mesh = f"data {self.data} x pipeline {self.pipeline}"
        for axis in ("tensor", "context", "expert"):
            if (size := getattr(self, axis)) > 1:
                mesh += f" x {axis} {size}" if axis != "expert" else f" (experts over {size})"
        text = f"{mesh}, {self.microbatches} microbatches of {self.microbatch_samples}"
        if self.pipeline > 1:
            text += f", {self.schedule}"
        if self.interleave > 1:
            text += f" interleaved {self.interleave}"
        if self.sequence_parallel:
            text += ", sequence parallel"
        if self.zero:
            text += f", zero {self.zero}"
        if self.recompute != "none":
            text += f", recompute {self.recompute}"
        if self.solver == "local":
            return f"{text}, local, averaged every {self.synchronise_every} steps"
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

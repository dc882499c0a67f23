"""What the ranks of a run are to do, read from its folder: the plan, the model, both programs, and the data."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import RunError
from ..models.cost.lowering_choice import check_lowering
from ..models.onnxpp import Onnxpp, annotation, load_onnxpp
from ..models.onnxpp.hints import with_lowering
from ..models.plan import Partition, Plan, Recipe, Strategy, load_plan
from ..models.program import Program
from ..models.program.lower import lower, lower_evaluation
from .checkpoint import Checkpoint, latest
from .data import Dataset, check_dataset, open_dataset
from .run_folder import RunFolder
from .sampling import Sampler, split_samples

__all__ = ["Assignment", "TrainingData"]


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """A run to take part in.

    about       run.json
    attempt     how often ranks were started in this folder before
    program     of a training step
    evaluation  of one batch's score
    """

    folder: RunFolder
    about: Mapping[str, Any]
    attempt: int
    plan: Plan
    model: Onnxpp
    program: Program
    evaluation: Program

    @classmethod
    def read(cls, folder: RunFolder) -> Assignment:
        """As the folder says, and the launcher, which counts its own attempts in HPDLF_ATTEMPT.

        Raises:
            RunError: the folder holds no run.
            PlanError, ModelError: its plan or model cannot be read, or asks for a lowering that there is not.
        """
        about, plan = folder.read(), load_plan(folder.plan)
        model = with_lowering(load_onnxpp(Path(about["model"])), plan.configuration)
        check_lowering(model.graph, samples=plan.strategy.microbatch_samples)
        placed = annotation(model, plan.configuration)
        cut = Partition(
            stages={name: p.stage for name, p in placed.items()},
            segments={name: p.segment for name, p in placed.items()},
        )
        recipe = plan.recipe
        return cls(
            folder=folder,
            about=about,
            attempt=about["first_attempt"] + int(os.environ.get("HPDLF_ATTEMPT", "0")),
            plan=plan,
            model=model,
            program=lower(
                model.graph,
                cut,
                plan.strategy,
                optimizer=recipe.optimizer.name,
                checkpoint_every=recipe.checkpoint_every,
            ),
            evaluation=lower_evaluation(model.graph, cut, plan.strategy),
        )

    @property
    def recipe(self) -> Recipe:
        """The plan's."""
        return self.plan.recipe

    @property
    def strategy(self) -> Strategy:
        """The plan's."""
        return self.plan.strategy

    @property
    def identity(self) -> dict[str, Any]:
        """What another run must have in common to go on from this one's checkpoints: the model and the samples' order."""
        return {"model": self.model.source_sha256, "batch": self.strategy.batch, "seed": self.recipe.seed}

    def checkpoint(self, *, steps: int) -> Checkpoint | None:
        """The newest checkpoint, whatever plan it was written under; None if there is none yet.

        Raises:
            RunError: it is of another training, or of a longer one than `steps`.
        """
        found = latest(self.folder.checkpoints)
        if found is None:
            return None
        theirs = found.about
        different = [f"{k} {theirs.get(k)} there, {v} here" for k, v in self.identity.items() if theirs.get(k) != v]
        if different:
            raise RunError(
                f"{found.path} is of another training: {'; '.join(different)}. Give the plan the same, or train into "
                "a new folder with `--out`."
            )
        if found.step > steps:
            raise RunError(
                f"{found.path} is after step {found.step}, but the plan's training ends after {steps}. Give the "
                "recipe more steps and plan again, or train into a new folder with `--out`."
            )
        return found


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """The data of an assignment.

    sampler    which sample is trained on when
    steps      in the whole training
    scored     where the evaluation's samples are; `held_out` their indices, int64 [n]
    """

    dataset: Dataset
    sampler: Sampler
    steps: int
    scored: Dataset
    held_out: np.ndarray

    @classmethod
    def open(cls, assignment: Assignment) -> TrainingData:
        """Open and check it.

        Raises:
            DataError: it is not there, does not fit the model, or is too little.
        """
        recipe, strategy = assignment.recipe, assignment.strategy
        base, graph = Path(assignment.about["base_folder"]), assignment.model.graph

        def dataset(source: str | None) -> Dataset:
            opened = open_dataset(recipe.data, base_folder=base, source=source)
            return check_dataset(opened, graph, scale=recipe.data.scale, precision=strategy.precision)

        main = dataset(recipe.data.source)
        train, held_out = split_samples(main.samples, recipe)
        other = dataset(recipe.evaluation.source) if recipe.evaluation.source is not None else None
        return cls(
            dataset=main,
            sampler=Sampler(train=train, batch=strategy.batch, seed=recipe.seed, shuffle=recipe.data.shuffle),
            steps=recipe.total_steps(samples=main.samples, batch=strategy.batch),
            scored=other or main,
            held_out=np.arange(other.samples) if other else held_out,
        )

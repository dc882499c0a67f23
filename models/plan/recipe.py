"""The training recipe: everything about a training that does not depend on how it is cut over ranks.

A recipe is a TOML file that people write; `Recipe()` is a usable default. The global batch is not in it: that is the
plan's.

>>> recipe = Recipe(epochs=3, evaluation=Evaluation(fraction=0.2))
>>> recipe.optimizer.name, recipe.optimizer.hyperparameters["learning_rate"]
('adam', 0.001)
>>> recipe.train_samples(1000), recipe.total_steps(samples=1000, batch=64)
(800, 36)
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ...errors import DataError, PlanError

__all__ = [
    "OPTIMIZERS",
    "Data",
    "Evaluation",
    "OptimizerChoice",
    "Recipe",
    "Schedule",
    "is_module_source",
    "load_recipe",
    "recipe_of",
    "state_copies",
]

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]
MODULE_SOURCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
MOST_BYTES = 1_000_000


class Rule(NamedTuple):
    """What an optimiser is: copies of every parameter that it keeps, and its hyper-parameters with their defaults."""

    state_copies: int
    defaults: Mapping[str, float | bool]


OPTIMIZERS: Mapping[str, Rule] = MappingProxyType(
    {
        "sgd": Rule(0, {"learning_rate": 0.05, "weight_decay": 0.0}),
        "momentum": Rule(1, {"learning_rate": 0.05, "momentum": 0.9, "nesterov": False, "weight_decay": 0.0}),
        "adam": Rule(2, {"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}),
        "adamw": Rule(2, {"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "weight_decay": 1e-2}),
        "nadam": Rule(2, {"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}),
        "amsgrad": Rule(3, {"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}),
        "rmsprop": Rule(1, {"learning_rate": 1e-3, "decay": 0.9, "epsilon": 1e-8}),
        "adagrad": Rule(1, {"learning_rate": 1e-2, "epsilon": 1e-7}),
        "lamb": Rule(2, {"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-6, "weight_decay": 0.0}),
        "lion": Rule(1, {"learning_rate": 1e-4, "beta1": 0.9, "beta2": 0.99, "weight_decay": 1e-3}),
    }
)
OptimizerName = Literal["sgd", "momentum", "adam", "adamw", "nadam", "amsgrad", "rmsprop", "adagrad", "lamb", "lion"]
_EVERY_OPTIMIZER = ("name", "clip_value", "clip_tensor_norm")


def state_copies(optimizer: str) -> int:
    """How many values the optimiser keeps per parameter element, each of the parameter's type.

    >>> [state_copies(name) for name in ("sgd", "momentum", "adam")]
    [0, 1, 2]

    Raises:
        PlanError: there is no such optimiser.
    """
    if optimizer not in OPTIMIZERS:
        raise PlanError(
            f"There is no optimiser {optimizer!r}{_did_you_mean(optimizer, OPTIMIZERS)}. Known: "
            f"{', '.join(OPTIMIZERS)}."
        )
    return OPTIMIZERS[optimizer].state_copies


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Data(_Part):
    """Where samples come from.

    source   an `.npz` file, a folder of `.npy` files (the first axis of every array is the sample), or
             `module:attribute`: a dataset with `__len__` and `__getitem__`, or an iterable, or a callable that returns
             one, of dict batches
    arrays   {input or label of the model: name of the array}, for those whose names differ
    scale    {input: factor}: values are multiplied by it after conversion to the model's type. Integer data for an
             input of floats needs one: 1/255 for images of bytes, 1.0 to take the numbers as they are
    samples  use only the first so many; an iterable that never ends needs it
    shuffle  a new order every epoch
    """

    source: str | None = None
    arrays: Mapping[str, str] = Field(default_factory=dict)
    scale: Mapping[str, float] = Field(default_factory=dict)
    samples: int | None = Field(default=None, gt=0)
    shuffle: bool = True


class Evaluation(_Part):
    """What is kept from training, and the metric on it.

    fraction   of the samples, drawn by the seed; 0: no evaluation unless `source` names other data
    source     as in `Data`; with the same array names and scales
    metric     "accuracy" (share of samples whose highest score is the label), "mse", or "none" (the loss alone)
    every      "epoch", or "end": once when training ends
    """

    fraction: Share = 0.0
    source: str | None = None
    metric: Literal["accuracy", "mse", "none"] = "accuracy"
    every: Literal["epoch", "end"] = "epoch"

    @model_validator(mode="after")
    def _one_origin(self) -> Evaluation:
        if self.fraction and self.source is not None:
            raise ValueError("give fraction or source, not both")
        return self


class OptimizerChoice(_Part):
    """The optimiser and its hyper-parameters; what is left out has the default that `OPTIMIZERS` states.

    decay              rmsprop's forgetting factor
    weight_decay       sgd and momentum add it to the gradient (L2); adamw, lamb and lion shrink the weights directly
    clip_value         every element of a gradient is held within +- this
    clip_tensor_norm   the gradient of each tensor is scaled down to at most this norm. Each tensor by itself: the norm
                       over all tensors would depend on which ranks hold them
    """

    name: OptimizerName = "adam"
    learning_rate: Positive | None = None
    momentum: Share | None = None
    nesterov: bool | None = None
    beta1: Share | None = None
    beta2: Share | None = None
    decay: Share | None = None
    epsilon: Positive | None = None
    weight_decay: NotNegative | None = None
    clip_value: Positive | None = None
    clip_tensor_norm: Positive | None = None

    @model_validator(mode="after")
    def _fitting(self) -> OptimizerChoice:
        own = OPTIMIZERS[self.name].defaults
        strange = [f for f, v in self if v is not None and f not in own and f not in _EVERY_OPTIMIZER]
        if strange:
            owners = [n for n, rule in OPTIMIZERS.items() if all(f in rule.defaults for f in strange)]
            hint = f"; {', '.join(owners)} would" if owners else ""
            raise ValueError(f"{self.name} does not use {', '.join(strange)}{hint}. It uses {', '.join(own)}")
        return self

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Every hyper-parameter of this optimiser, defaults filled in; clipping is not among them."""
        return {
            k: default if (given := getattr(self, k)) is None else given
            for k, default in OPTIMIZERS[self.name].defaults.items()
        }


class Schedule(_Part):
    """How the learning rate changes.

    name            "constant"; "cosine" or "linear": down to `final_fraction` at the last step; "step": times `factor`
                    every so often
    warmup_steps    rises linearly over so many steps first: (step + 1) / warmup_steps of the full rate
    final_fraction  of the full rate, for cosine and linear
    factor, every_epochs, every_steps   for step
    """

    name: Literal["constant", "cosine", "linear", "step"] = "constant"
    warmup_steps: int = Field(default=0, ge=0)
    final_fraction: float = Field(default=0.0, ge=0, le=1)
    factor: float = Field(default=0.1, gt=0, le=1)
    every_epochs: int | None = Field(default=None, gt=0)
    every_steps: int | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _fitting(self) -> Schedule:
        intervals = sum(v is not None for v in (self.every_epochs, self.every_steps))
        if self.name == "step" and intervals != 1:
            raise ValueError("step needs one of every_epochs and every_steps")
        if self.name != "step" and intervals:
            raise ValueError(f'every_epochs and every_steps belong to name = "step", not to {self.name}')
        return self


class Recipe(_Part):
    """A training, whatever the machine.

    steps, epochs      how long: one of the two; 10 epochs if neither
    seed               of the split, the order of samples, initial values and dropout
    precision          of parameters, gradients and arithmetic
    checkpoint_every   steps between checkpoints; None: only at the end
    keep_checkpoints   the newest so many stay
    initialization     "model": the values in the file; else drawn by the seed and the tensor's name: "he" and "glorot"
                       and "lecun" (uniform), or "zeros"
    """

    format: Literal[1] = 1
    steps: int | None = Field(default=None, gt=0)
    epochs: int | None = Field(default=None, gt=0)
    seed: int = Field(default=0, ge=0, lt=2**63)
    precision: Literal["float32", "float64"] = "float32"
    checkpoint_every: int | None = Field(default=None, gt=0)
    keep_checkpoints: int = Field(default=2, gt=0)
    initialization: Literal["model", "he", "glorot", "lecun", "zeros"] = "model"
    data: Data = Data()
    evaluation: Evaluation = Evaluation()
    optimizer: OptimizerChoice = OptimizerChoice()
    schedule: Schedule = Schedule()

    @model_validator(mode="after")
    def _one_length(self) -> Recipe:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give steps or epochs, not both")
        return self

    def evaluation_samples(self, samples: int) -> int:
        """How many of `samples` the split keeps for evaluation."""
        return round(self.evaluation.fraction * samples)

    def train_samples(self, samples: int) -> int:
        """How many of `samples` are trained on."""
        return samples - self.evaluation_samples(samples)

    def steps_per_epoch(self, *, samples: int, batch: int) -> int:
        """Whole batches in one pass over the training samples; what is left over waits for the next epoch's order.

        Raises:
            DataError: there is not even one.
        """
        trained = self.train_samples(samples)
        if trained < batch:
            kept = f" after {samples - trained} were kept for evaluation" if trained < samples else ""
            raise DataError(
                f"The data has {trained} samples to train on{kept}, too few for one batch of {batch}: plan a smaller "
                "one with "
                f"`hpdlf plan --batch {max(trained, 1)}`, or give more data."
            )
        return trained // batch

    def total_steps(self, *, samples: int, batch: int) -> int:
        """Updates in the whole training.

        Raises:
            DataError: the data does not fill one batch.
        """
        per_epoch = self.steps_per_epoch(samples=samples, batch=batch)
        return self.steps if self.steps is not None else (self.epochs or 10) * per_epoch

    def moved(self, old_folder: Path, new_folder: Path) -> Recipe:
        """The same recipe for a file in `new_folder`: relative paths, so far from `old_folder`, still lead there."""

        def move(source: str | None) -> str | None:
            if source is None or is_module_source(source) or Path(source).is_absolute():
                return source
            return Path(os.path.relpath(old_folder / source, new_folder)).as_posix()

        return self.model_copy(
            update={
                "data": self.data.model_copy(update={"source": move(self.data.source)}),
                "evaluation": self.evaluation.model_copy(update={"source": move(self.evaluation.source)}),
            }
        )


def is_module_source(source: str) -> bool:
    """Whether a data source means `module:attribute` rather than a path.

    >>> is_module_source("datasets.faces:train"), is_module_source("faces.npz"), is_module_source("./odd:name")
    (True, False, False)
    """
    return MODULE_SOURCE.fullmatch(source) is not None


def load_recipe(path: str | os.PathLike[str]) -> Recipe:
    """Read a recipe from a TOML file.

    Raises:
        PlanError: it cannot be read, or holds fields or values that a recipe does not have: all of them in one message.
    """
    file = Path(path)
    try:
        if file.stat().st_size > MOST_BYTES:
            raise PlanError(f"{file} is too long for a recipe, which has less than {MOST_BYTES:,} bytes.")
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise PlanError(
            f"{file}: the recipe cannot be read: {error.strerror}. Give another with `hpdlf plan --recipe FILE`."
        ) from None
    except UnicodeDecodeError:
        raise PlanError(f"{file} is no recipe: no text in UTF-8, so no TOML.") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise PlanError(f"{file} is no recipe: no TOML: {error}.") from None
    return recipe_of(table, f"{file}: {{problems}}. Correct the file and plan again:")


def recipe_of(table: Mapping[str, Any], complaint: str) -> Recipe:
    """The recipe that a table of fields says.

    complaint   the first line of the message, with "{problems}" for how many there are

    Raises:
        PlanError: it holds fields or values that a recipe does not have: all of them in one message.
    """
    try:
        return Recipe.model_validate(table)
    except ValidationError as error:
        lines = [
            f"  {'.'.join(map(str, problem['loc'])) or 'the recipe'}: {_in_words(problem)}"
            for problem in error.errors()
        ]
        count = "one problem" if len(lines) == 1 else f"{len(lines)} problems"
        raise PlanError("\n".join([complaint.replace("{problems}", count), *lines])) from None


def _in_words(problem: Any) -> str:
    """One of pydantic's problems, for somebody who wrote TOML."""
    match problem["type"]:
        case "extra_forbidden":
            fields = _fields_at(problem["loc"][:-1])
            guess = _did_you_mean(str(problem["loc"][-1]), fields)
            return f"there is no such field{guess}" if guess else f"there is no such field. Known: {', '.join(fields)}"
        case "literal_error":
            return f"{problem['input']!r} is not one of {problem['ctx']['expected']}{_guess_literal(problem)}"
        case "value_error":
            return str(problem["ctx"]["error"])
        case _:
            return f"{problem['msg'][0].lower()}{problem['msg'][1:]}, not {problem['input']!r}"


def _fields_at(loc: tuple[Any, ...]) -> list[str]:
    model: Any = Recipe
    for part in loc:
        model = model.model_fields[part].annotation
    return list(model.model_fields)


def _guess_literal(problem: Any) -> str:
    *above, field = problem["loc"]
    model: Any = Recipe
    for part in above:
        model = model.model_fields[part].annotation
    return _did_you_mean(str(problem["input"]), [str(v) for v in get_args(model.model_fields[field].annotation)])


def _did_you_mean(word: str, known: Any) -> str:
    close = get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""

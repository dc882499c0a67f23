"""The recipe: defaults, arithmetic, and one message for all that is wrong with a file."""

import doctest
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hpdlf.errors import DataError, PlanError
from hpdlf.models.plan import recipe as recipe_module
from hpdlf.models.plan.recipe import OPTIMIZERS, Recipe, is_module_source, load_recipe, state_copies

FULL = """
format = 1
epochs = 4
seed = 3
precision = "float64"
checkpoint_every = 50
initialization = "he"

[data]
source = "../digits.npz"
shuffle = false

[data.arrays]
input = "images"
label = "classes"

[data.scale]
input = 0.0625

[evaluation]
fraction = 0.25
metric = "accuracy"
every = "end"

[optimizer]
name = "momentum"
momentum = 0.8
nesterov = true
clip_value = 1

[schedule]
name = "cosine"
warmup_steps = 10
final_fraction = 0.1
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


def test_doctests() -> None:
    assert doctest.testmod(recipe_module).failed == 0


def test_every_field_is_read(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, FULL))
    assert (recipe.epochs, recipe.seed, recipe.precision, recipe.checkpoint_every) == (4, 3, "float64", 50)
    assert recipe.data.arrays == {"input": "images", "label": "classes"}
    assert recipe.data.scale == {"input": 0.0625}
    assert recipe.optimizer.hyperparameters == {
        "learning_rate": 0.05, "momentum": 0.8, "nesterov": True, "weight_decay": 0.0,
    }  # fmt: skip
    assert recipe.schedule.warmup_steps == 10
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_an_empty_file_is_the_default(tmp_path: Path) -> None:
    assert load_recipe(written(tmp_path, "")) == Recipe()


def test_all_problems_come_together_with_what_was_meant(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """
epoch = 3
seed = "seven"
[optimizer]
name = "adamm"
learning-rate = 0.1
[data]
sorce = "x.npz"
[evaluation]
fraction = 1.5
[schedul]
name = "cosine"
""",
    )
    with pytest.raises(PlanError) as caught:
        load_recipe(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: 7 problems")
    for expected in (
        "epoch: there is no such field; did you mean 'epochs'?",
        "seed: ",
        "optimizer.name: 'adamm' is not one of",
        "did you mean 'adam",
        "optimizer.learning-rate: there is no such field; did you mean 'learning_rate'?",
        "data.sorce: there is no such field; did you mean 'source'?",
        "evaluation.fraction: ",
        "schedul: there is no such field; did you mean 'schedule'?",
    ):
        assert expected in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("steps = 3\nepochs = 4", "give steps or epochs, not both"),
        ('[optimizer]\nname = "adam"\nmomentum = 0.9', "adam does not use momentum; momentum would"),
        ('[schedule]\nname = "step"', "step needs one of every_epochs and every_steps"),
        ("[schedule]\nevery_steps = 3", 'belong to name = "step"'),
        ('[evaluation]\nfraction = 0.1\nsource = "a.npz"', "give fraction or source, not both"),
        ("[optimizer]\nlearning_rate = nan", "optimizer.learning_rate"),
        ("data = 3", "data: "),
        ("seed = [", "no TOML"),
    ],
)
def test_contradictions(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(PlanError) as caught:
        load_recipe(written(tmp_path, text))
    assert expected in str(caught.value)
    assert "recipe.toml" in str(caught.value)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="cannot be read"):
        load_recipe(tmp_path / "absent.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PlanError, match="UTF-8"):
        load_recipe(tmp_path / "binary.toml")


def test_lengths_in_closed_form() -> None:
    recipe = Recipe(epochs=3, evaluation={"fraction": 0.1})
    assert (recipe.evaluation_samples(105), recipe.train_samples(105)) == (10, 95)
    assert recipe.steps_per_epoch(samples=105, batch=10) == 9
    assert recipe.total_steps(samples=105, batch=10) == 27
    assert Recipe(steps=5).total_steps(samples=105, batch=10) == 5
    with pytest.raises(
        DataError, match="95 samples to train on after 10 were kept for evaluation, too few for one batch of 96"
    ):
        recipe.total_steps(samples=105, batch=96)


def test_state_copies_of_every_optimizer() -> None:
    assert {name: state_copies(name) for name in OPTIMIZERS} == {
        "sgd": 0, "momentum": 1, "adam": 2, "adamw": 2, "nadam": 2, "amsgrad": 3, "rmsprop": 1, "adagrad": 1, "lamb": 2,
        "lion": 1,
    }  # fmt: skip
    with pytest.raises(PlanError, match="did you mean 'adam'"):
        state_copies("adem")


def test_a_recipe_moves_with_its_paths(tmp_path: Path) -> None:
    old, new = tmp_path / "recipes", tmp_path / "plans" / "deep"
    recipe = Recipe(data={"source": "data/x.npz"}, evaluation={"source": str(tmp_path / "y.npz")})
    moved = recipe.moved(old, new)
    assert os.path.normpath(new / str(moved.data.source)) == str(old / "data" / "x.npz")
    assert moved.evaluation.source == str(tmp_path / "y.npz")
    module = Recipe(data={"source": "a.b:c"})
    assert module.moved(old, new) == module


@pytest.mark.parametrize(
    ("source", "expected"), [("a:b", True), ("a.b:c.d", True), ("C:/x.npz", False), ("a.npz", False), ("a:b c", False)]
)
def test_module_sources(source: str, expected: bool) -> None:
    assert is_module_source(source) is expected


def test_planning_needs_neither_jax_nor_mpi() -> None:
    code = "import sys, hpdlf.models.plan.recipe; print([m for m in ('jax', 'mpi4py', 'optax') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"

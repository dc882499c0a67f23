"""The whole path once, on real input: ``make demo``.

(a) a what-if of ResNet-50 on three clusters, (b) a small convolutional network on scikit-learn's handwritten digits: measured
machine, import, plan, approval, training on two ranks, refinement, report. Every step is a command that a user could type; the
demo prints it before it runs it. All files land in one folder, the user's own profiles and database stay as they are.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

__all__ = ["main", "write_digits", "write_recipe"]

BATCH = 128

RECIPE = """\
# A training, whatever the machine: `hpdlf plan --recipe` reads it. Everything that is left out has a default.
epochs = 40
seed = 1
checkpoint_every = 100

[data]
source = "digits-train.npz"        # arrays named as the model's inputs: x (1,438 images of 8x8) and labels

[evaluation]
source = "digits-test.npz"         # 359 images that training never sees
metric = "accuracy"
every = "end"

[optimizer]
name = "adam"
learning_rate = 0.002
"""


def write_digits(folder: Path, *, test_share: float = 0.2, seed: int = 0) -> None:
    """Write scikit-learn's 1,797 handwritten digits (8x8, UCI, Alpaydin and Kaynak 1998) as a training and a test file."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (digits.images[:, None] / 16).astype(np.float32)
    labels = digits.target.astype(np.int64)
    order = np.random.Generator(np.random.Philox(seed)).permutation(len(labels))
    kept = round(test_share * len(labels))
    for name, chosen in (("digits-test.npz", order[:kept]), ("digits-train.npz", order[kept:])):
        np.savez(folder / name, x=images[chosen], labels=labels[chosen])


def write_recipe(folder: Path) -> None:
    """Write the training recipe."""
    (folder / "recipe.toml").write_text(RECIPE)


class _Shell:
    """Runs hpdlf's commands in a folder, each shown before it runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        own = {"HPDLF_PROFILES": str(folder / "profiles"), "HPDLF_DATABASE": str(folder / "observations.duckdb")}
        self.environment = os.environ | own

    def run(self, *words: str) -> list[str]:
        """Run ``hpdlf WORDS`` and return the lines it printed; the demo ends where a command fails."""
        print(f"\n$ hpdlf {shlex.join(words)}", flush=True)
        command = [sys.executable, "-m", "hpdlf", *words]
        lines = []
        with subprocess.Popen(command, cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            for line in child.stdout:
                print(line, end="", flush=True)
                lines.append(line.rstrip())
        if child.returncode:
            raise SystemExit(child.returncode)
        return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo."""
    parser = argparse.ArgumentParser(prog="python -m hpdlf.experiments.demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for all files (default: demo)")
    options = parser.parse_args(arguments)
    folder: Path = options.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    shell = _Shell(folder)

    _title("(a) What if: ResNet-50 on 8 to 512 devices of three clusters")
    shell.run("whatif", "resnet50", "--devices", "8,16,32,64,128,256,512", "-o", "whatif.png")

    _title("(b) Train: handwritten digits on two ranks of this machine")
    _write_inputs(folder)
    run = _new_run(folder)
    shell.run("profile", "measure", "--budget", "40")
    shell.run("import", "digits.onnx", "--loss", "softmax_xent", "-o", "digits.hpdlf.onnx")
    plan = ["plan", "digits.hpdlf.onnx", "--on", "local", "--batch", str(BATCH), "--ranks", "2"]
    shell.run(*plan, "--recipe", "recipe.toml", "-o", "plan.json")
    shell.run("approve", "plan.json", "--yes")
    shell.run("train", "plan.json", "--out", run)
    shell.run("export", run, "-o", "trained.onnx")
    refined = shell.run("refine", run)
    shell.run("report", run, "-o", "report.html")

    print(f"\nIn {folder.name}/: whatif.png, plan.json, {run}/, trained.onnx, report.html.", flush=True)
    print(f"The demo took {time.monotonic() - began:.0f} s.\n", flush=True)
    for line in refined:
        if line.startswith("step time:"):
            print(line, flush=True)
    return 0


def _title(text: str) -> None:
    print(f"\n{text}\n{'=' * len(text)}", flush=True)


def _write_inputs(folder: Path) -> None:
    import onnx

    from ..models.zoo import digits_cnn

    onnx.save(digits_cnn(), folder / "digits.onnx")
    write_digits(folder)
    write_recipe(folder)
    print("Wrote digits.onnx, digits-train.npz, digits-test.npz and recipe.toml.", flush=True)


def _new_run(folder: Path) -> str:
    """A folder that no earlier demo used: runs are never overwritten."""
    number = 1
    while (folder / f"run{number}").exists():
        number += 1
    return f"run{number}"


if __name__ == "__main__":
    sys.exit(main())

"""Who may import whom: the table of the design, read off the sources, and what a what-if must do without."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import onnx
import pytest

import hpdlf
from hpdlf.models.zoo import small

ROOT = Path(hpdlf.__file__).parent
ROOMS = {
    "hwprofiles": set(),
    "models": {"hwprofiles"},
    "sim": {"models", "hwprofiles"},
    "exec": {"models", "hwprofiles"},
    "experiments": {"sim", "exec", "models", "hwprofiles"},
}
# Each may import what stands before it.
MODELS = ["onnxpp", "zoo", "cost", "plan", "program", "trace"]
HEAVY = ["jax", "mpi4py", "sklearn", "onnx", "numpy", "pandas", "scipy", "matplotlib", "duckdb", "simpy", "pydantic"]


@cache
def sources() -> list[tuple[str, ast.Module]]:
    """Every module of the package by its name relative to hpdlf ("sim.engine"), parsed."""
    found = []
    for room in (*ROOMS, ""):
        folder = ROOT / room
        for path in sorted(folder.rglob("*.py") if room else folder.glob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found.append((name, ast.parse(path.read_text(), str(path))))
    return found


def is_package(module: str) -> bool:
    return (ROOT / module.replace(".", "/") / "__init__.py").is_file()


def imports(module: str, tree: ast.Module) -> Iterator[str]:
    """What a module imports of ours, wherever the statement stands, as names relative to hpdlf. `from .. import a` names a."""
    package = module.split(".") if is_package(module) else module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name.removeprefix("hpdlf.") for a in node.names if a.name.split(".")[0] == "hpdlf")
        elif isinstance(node, ast.ImportFrom):
            if not node.level:
                if node.module and node.module.split(".")[0] == "hpdlf":
                    yield node.module.removeprefix("hpdlf").removeprefix(".")
                continue
            base = [*package[: len(package) - node.level + 1], *(node.module.split(".") if node.module else [])]
            yield from (".".join([*base, a.name]) for a in node.names)


FOUND = [(module, target) for module, tree in sources() for target in imports(module, tree)]


def test_the_sources_are_found() -> None:
    assert {m.split(".")[0] for m, _ in FOUND} >= set(ROOMS)
    assert ("sim.engine", "models.program.Program") in FOUND
    assert ("models.program.segments", "models.onnxpp.graph.Graph") in FOUND


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_the_table_allows(room: str) -> None:
    allowed = {room, "errors", *ROOMS[room]}
    wrong = [(m, t) for m, t in FOUND if m.split(".")[0] == room and t.split(".")[0] not in allowed]
    assert wrong == []


def test_models_import_only_what_stands_before() -> None:
    wrong = []
    for module, target in FOUND:
        here, there = module.split("."), target.split(".")
        if here[0] != "models" or there[0] != "models":
            continue
        if (
            len(here) == 1 or len(there) == 1 or MODELS.index(there[1]) > MODELS.index(here[1])
        ):  # models/__init__.py: nothing stands in it
            wrong.append((module, target))
    assert wrong == []


def test_every_module_stands_in_a_room() -> None:
    top = {m.split(".")[0] for m, _ in sources()}
    assert top - set(ROOMS) == {"", "errors", "__main__"}
    assert {m.split(".")[1] for m, _ in sources() if m.startswith("models.")} == set(MODELS)


def test_errors_import_nothing_of_ours() -> None:
    assert [(m, t) for m, t in FOUND if m == "errors"] == []


def test_nothing_unpickles_or_evaluates() -> None:
    wrong = []
    for module, tree in sources():
        for node in ast.walk(tree):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            called = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
            if {n.split(".")[0] for n in names} & {"pickle", "marshal", "shelve", "dill"} or called in ("eval", "exec"):
                wrong.append((module, node.lineno))  # type: ignore[attr-defined]
    assert wrong == []


def run(script: str, *arguments: str, cwd: Path | None = None) -> str:
    environment = os.environ | {"COLUMNS": "100", "HPDLF_DATABASE": str((cwd or ROOT) / "none.duckdb")}
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, cwd=cwd, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_importing_the_package_imports_nothing_heavy() -> None:
    script = f"import sys, hpdlf; print([m for m in {HEAVY!r} if m in sys.modules])"
    assert run(script).strip() == "[]"


BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("jax", "jaxlib", "mpi4py", "sklearn", "torch"):
            raise ImportError(f"{name} must not be imported here")

sys.meta_path.insert(0, Blocker())
from hpdlf.__main__ import main

for command in sys.argv[1:]:
    code = main(command.split())
    assert not code, f"{command}: {code}"
print("done")
"""


def test_every_what_if_command_works_without_jax_mpi_and_sklearn(tmp_path: Path) -> None:
    import numpy as np

    onnx.save(small.digits_cnn(channels=(4, 8), hidden=16), tmp_path / "m.onnx")
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", x=rng.random((64, 1, 8, 8), dtype=np.float32), labels=rng.integers(0, 10, 64))
    (tmp_path / "r.toml").write_text('epochs = 1\n[data]\nsource = "d.npz"\n')
    said = run(
        BLOCKED,
        "import m.onnx --loss softmax_xent -o m.hpdlf.onnx",
        "inspect m.hpdlf.onnx",
        "profile list",
        "profile show dgx-a100",
        "simulate m.hpdlf.onnx --on xeon-64 --batch 64 --data 4 --json",
        "simulate m.onnx --on dgx-a100 --batch 64 --pipeline 2 --microbatches 4 --trace t.json",
        "whatif m.onnx --on dgx-a100 --devices 1,8",
        "plan m.onnx --on dgx-a100:1 --batch 64 -o p.json",
        "plan m.onnx --on dgx-a100:1 --batch 32 --recipe r.toml -o q.json",
        "approve q.json --as Ada --yes",
        cwd=tmp_path,
    )
    assert said.strip().endswith("done")
    assert (tmp_path / "q.json.approval.json").is_file()


def test_the_public_names_are_there() -> None:
    assert all(getattr(hpdlf, name) is not None for name in hpdlf.__all__)

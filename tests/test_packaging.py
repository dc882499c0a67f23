"""What is installed is what lies in the tree, and what its docstrings show is what it does."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import hpdlf

ROOT = Path(hpdlf.__file__).parent
ROOMS = ("hwprofiles", "models", "sim", "exec", "experiments")
MODULES = sorted(m.name for m in pkgutil.walk_packages(hpdlf.__path__, "hpdlf.") if m.name.split(".")[1] != "tests")


def project() -> dict[str, object]:
    if not (ROOT / "pyproject.toml").is_file():
        pytest.skip("hpdlf was not installed from its sources")
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def in_tree(pattern: str) -> set[str]:
    """Files of the package in the tree, relative to its root."""
    found = [p for room in ROOMS for p in (ROOT / room).rglob(pattern)] + list(ROOT.glob(pattern))
    return {p.relative_to(ROOT).as_posix() for p in found if "__pycache__" not in p.parts}


def test_the_list_of_packages_is_the_tree() -> None:
    tools = project()["tool"]["setuptools"]  # type: ignore[index]
    folders = {Path(p).parent for p in in_tree("__init__.py")}
    assert set(tools["packages"]) == {".".join(("hpdlf", *folder.parts)) for folder in folders}
    assert tools["package-dir"] == {"hpdlf": "."}


def test_every_module_lies_in_a_package() -> None:
    folders = {Path(p).parent for p in in_tree("__init__.py")}
    assert [p for p in sorted(in_tree("*.py")) if Path(p).parent not in folders] == []
    assert {f"hpdlf.{p.removesuffix('.py').removesuffix('/__init__').replace('/', '.')}" for p in in_tree("*.py")} - {
        "hpdlf.__init__"
    } == set(MODULES)


def test_a_wheel_has_everything(tmp_path: Path) -> None:
    project()
    copy = tmp_path / "sources"
    skipped = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "tests", "demo")
    shutil.copytree(ROOT, copy, ignore=skipped, symlinks=True)
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--quiet",
        "-w",
        str(tmp_path),
        ".",
    ]
    done = subprocess.run(build, cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    packed = {n.removeprefix("hpdlf/") for n in zipfile.ZipFile(wheel).namelist() if n.startswith("hpdlf/")}
    data = {name for pattern in ("*.toml", "*.json", "*.html", "*.npz") for name in in_tree(pattern)} - {"pyproject.toml"}
    assert {name for name in data if name.startswith("hwprofiles/")}
    assert packed == in_tree("*.py") | {name for name in data if "/" in name} | {"py.typed"}


@pytest.mark.parametrize("name", MODULES)
def test_docstrings_show_what_happens(name: str) -> None:
    module = importlib.import_module(name)
    found = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert found.failed == 0


@pytest.mark.parametrize("name", ["hpdlf", *MODULES])
def test_the_names_that_a_module_promises_are_there(name: str) -> None:
    module = importlib.import_module(name)
    promised = getattr(module, "__all__", ())
    assert len(promised) == len(set(promised))
    assert [n for n in promised if not hasattr(module, n)] == []
    package = hasattr(module, "__path__")
    assert promised or not package or name in ("hpdlf.models", "hpdlf.exec", "hpdlf.experiments", "hpdlf.experiments.published")


def test_every_module_says_what_it_is() -> None:
    modules = [m for m in map(importlib.import_module, MODULES) if not hasattr(m, "__path__")]
    assert [m.__name__ for m in modules if not (m.__doc__ or "").strip()] == []

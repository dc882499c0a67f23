"""hpdlf: predict, plan, approve and run the training of any ONNX model on any cluster.

>>> import hpdlf
>>> hpdlf.Strategy(batch=64, data=2).ranks
2
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"

# Where each public name lives. Nothing is imported before it is used: `import hpdlf` costs nothing.
_HOMES = {
    "Backend": "exec.backend",
    "Cluster": "hwprofiles",
    "CostModel": "models.cost",
    "HpdlfError": "errors",
    "Onnxpp": "models.onnxpp",
    "Recipe": "models.plan",
    "Simulation": "sim",
    "Strategy": "models.plan",
    "approve": "experiments.verbs",
    "compile": "exec.notebook",
    "doctor": "exec.doctor",
    "export": "experiments.verbs",
    "import_model": "models.onnxpp",
    "load_cluster": "hwprofiles",
    "load_model": "experiments.verbs",
    "load_plan": "models.plan",
    "load_recipe": "models.plan",
    "measure": "experiments.verbs",
    "plan": "experiments.verbs",
    "refine": "experiments.refine",
    "report": "experiments.report",
    "save_model": "models.onnxpp",
    "search": "experiments.verbs",
    "simulate": "experiments.verbs",
    "train": "exec.train",
    "tune": "experiments.tuning",
    "whatif": "experiments.verbs",
}
_OTHER_NAMES = {"compile": "compile_model", "doctor": "examine", "save_model": "save_onnxpp"}

__all__ = [*sorted(_HOMES), "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hpdlf' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), _OTHER_NAMES.get(name, name))


def __dir__() -> list[str]:
    return __all__

"""ONNX++: import, validation, annotation, counting and export of models."""

from .annotation import Placement, annotate, annotation
from .count import FAMILIES, PHASES, Phase, Work, family, work
from .devices import Strategy, strategies
from .export import export_trained
from .graph import Dim, Graph, Operator, Tensor
from .importing import import_model
from .loss import LOSSES
from .onnxpp import FORMAT, Onnxpp, is_onnxpp, load_onnxpp, save_onnxpp
from .values import load_values, released

__all__ = [
    "FAMILIES",
    "FORMAT",
    "LOSSES",
    "PHASES",
    "Dim",
    "Graph",
    "Onnxpp",
    "Operator",
    "Phase",
    "Placement",
    "Strategy",
    "Tensor",
    "Work",
    "annotate",
    "annotation",
    "export_trained",
    "family",
    "import_model",
    "is_onnxpp",
    "load_onnxpp",
    "load_values",
    "released",
    "save_onnxpp",
    "strategies",
    "work",
]

"""Shapes of the operators of ai.onnx.ml, most of which onnx has no inference for.

They see a tensor as rows of features: a vector is one row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from onnx import TensorProto, helper

from .known import Known

if TYPE_CHECKING:
    from .scope import Node, Scope
    from .walk import Rule, Walk

__all__ = ["ML_RULES"]

ML = "ai.onnx.ml"
Operands = list["Known | None"]


def _first(operands: Operands) -> Known:
    known = operands[0]
    assert known is not None, "the wiring was checked"
    return known


def _like_first(walk: Walk, node: Node, operands: Operands, scope: Scope) -> Operands:
    data = _first(operands)
    return [Known(data.dtype, data.dims, loose=data.loose)]


def _rows(data: Known) -> tuple[int, tuple[int, ...]]:
    """How many rows ai.onnx.ml sees in a tensor, and whether that is at most."""
    return (data.dims[0] if len(data.dims) > 1 else 1), ((0,) if 0 in data.loose and len(data.dims) > 1 else ())


def _columns(count: Callable[[dict[str, Any]], int]) -> Rule:
    def rule(walk: Walk, node: Node, operands: Operands, scope: Scope) -> Operands:
        rows, loose = _rows(_first(operands))
        return [Known(TensorProto.FLOAT, (rows, count(node.attributes)), loose=loose)]

    return rule


def _float_like(walk: Walk, node: Node, operands: Operands, scope: Scope) -> Operands:
    data = _first(operands)
    return [Known(TensorProto.FLOAT, data.dims, loose=data.loose)]


def _labels(attributes: dict[str, Any]) -> tuple[int, int]:
    """(element type of a label, number of classes) of a classifier."""
    for name, kind in (("classlabels_strings", TensorProto.STRING), ("classlabels_int64s", TensorProto.INT64)):
        if attributes.get(name):
            return kind, len(attributes[name])
    for name, kind in (("classlabels_ints", TensorProto.INT64),):
        if attributes.get(name):
            return kind, len(attributes[name])
    return TensorProto.INT64, 0


def _classifier(scores: Callable[[dict[str, Any], int], int]) -> Rule:
    def rule(walk: Walk, node: Node, operands: Operands, scope: Scope) -> Operands:
        rows, loose = _rows(_first(operands))
        kind, classes = _labels(node.attributes)
        columns = scores(node.attributes, classes)
        return [Known(kind, (rows,), loose=loose), Known(TensorProto.FLOAT, (rows, columns), loose=loose)]

    return rule


def _svm_scores(attributes: dict[str, Any], classes: int) -> int:
    if attributes.get("prob_a") or not attributes.get("vectors_per_class"):
        return max(classes, 1)
    return max(classes * (classes - 1) // 2, 1) if classes != 2 else 2


def _linear_scores(attributes: dict[str, Any], classes: int) -> int:
    return max(classes, len(attributes.get("intercepts", ())), 1)


def _feature_vectorizer(walk: Walk, node: Node, operands: Operands, scope: Scope) -> Operands:
    present = [o for o in operands if o is not None]
    told = node.attributes.get("inputdimensions")
    widths = list(told) if told else [o.dims[-1] if o.dims else 1 for o in present]
    rows, loose = _rows(_first(operands))
    return [Known(TensorProto.FLOAT, (rows, sum(widths)), loose=loose)]


def _zip_map(walk: Walk, node: Node, operands: Operands, scope: Scope) -> Operands:
    data = _first(operands)
    key = "string" if node.attributes.get("classlabels_strings") else "int64"
    dims = data.dims if len(data.dims) > 1 else (1, *data.dims)
    return [Known(f"map({key},float32)", dims, loose=data.loose if len(data.dims) > 1 else (), kind="sequence")]


def _one_hot(walk: Walk, node: Node, operands: Operands, scope: Scope) -> Operands:
    data = _first(operands)
    count = len(node.attributes.get("cats_int64s", ()) or node.attributes.get("cats_strings", ()))
    return [Known(TensorProto.FLOAT, (*data.dims, count), loose=data.loose)]


def _feature_extractor(walk: Walk, node: Node, operands: Operands, scope: Scope) -> Operands:
    data, index = _first(operands), operands[1]
    assert index is not None
    lead = data.dims[:-1] if len(data.dims) > 1 else (1,)
    return [Known(data.dtype, (*lead, index.elements), loose=[i for i in data.loose if i < len(data.dims) - 1])]


def _label_encoder(walk: Walk, node: Node, operands: Operands, scope: Scope) -> Operands:
    data, given = _first(operands), node.attributes
    tensor = given.get("values_tensor")
    if tensor is not None:
        kind = TensorProto.STRING if tensor.dtype == object else int(helper.np_dtype_to_tensor_dtype(tensor.dtype))
    elif "classes_strings" in given:  # version 1 maps strings to their places, and back
        kind = TensorProto.INT64 if data.dtype == TensorProto.STRING else TensorProto.STRING
    elif "values_strings" in given:
        kind = TensorProto.STRING
    else:
        kind = TensorProto.FLOAT if "values_floats" in given else TensorProto.INT64
    return [Known(kind, data.dims, loose=data.loose)]


def _category_mapper(walk: Walk, node: Node, operands: Operands, scope: Scope) -> Operands:
    data = _first(operands)
    kind = TensorProto.INT64 if data.dtype == TensorProto.STRING else TensorProto.STRING
    return [Known(kind, data.dims, loose=data.loose)]


def _tree_ensemble(walk: Walk, node: Node, operands: Operands, scope: Scope) -> Operands:
    data = _first(operands)
    rows, loose = _rows(data)
    return [Known(data.dtype, (rows, int(node.attributes.get("n_targets", 1))), loose=loose)]


def _targets(attributes: dict[str, Any]) -> int:
    return int(attributes.get("n_targets", attributes.get("targets", 1)))


ML_RULES: dict[tuple[str, str], Rule] = {
    (ML, "Scaler"): _float_like,
    (ML, "Normalizer"): _float_like,
    (ML, "Binarizer"): _float_like,
    (ML, "Imputer"): _like_first,
    (ML, "LinearRegressor"): _columns(_targets),
    (ML, "SVMRegressor"): _columns(_targets),
    (ML, "TreeEnsembleRegressor"): _columns(_targets),
    (ML, "TreeEnsembleClassifier"): _classifier(lambda attributes, classes: max(classes, 1)),
    (ML, "SVMClassifier"): _classifier(_svm_scores),
    (ML, "LinearClassifier"): _classifier(_linear_scores),
    (ML, "FeatureVectorizer"): _feature_vectorizer,
    (ML, "ZipMap"): _zip_map,
    (ML, "OneHotEncoder"): _one_hot,
    (ML, "ArrayFeatureExtractor"): _feature_extractor,
    (ML, "LabelEncoder"): _label_encoder,
    (ML, "CategoryMapper"): _category_mapper,
    (ML, "TreeEnsemble"): _tree_ensemble,
}

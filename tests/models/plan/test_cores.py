"""The inside of attention, where it is spelt out."""

from __future__ import annotations

from collections.abc import Callable

from hpdlf.models.onnxpp import Graph
from hpdlf.models.plan.cores import core_operators, core_spans
from hpdlf.models.zoo import import_network


def test_a_core_goes_from_the_scores_to_the_mixed_values(gpt_stack: Callable[..., Graph]) -> None:
    graph = gpt_stack(layers=2, width=64, tokens=16)
    spans = core_spans(graph)
    assert len(spans) == 2
    for first, last in spans:
        inside = [o.op_type for o in graph.operators[first : last + 1]]
        assert inside[0] == inside[-1] == "MatMul"
        assert "Softmax" in inside
        assert not {t for o in graph.operators[first : last + 1] for t in o.inputs} & set(graph.trainable)
    assert len(core_operators(graph)) == sum(last + 1 - first for first, last in spans)


def test_masks_and_dropout_lie_inside() -> None:
    graph = import_network("bert", layers=2, hidden=64, heads=4, seq_len=16, vocab=128).graph
    for first, last in core_spans(graph):
        assert [o.op_type for o in graph.operators[first : last + 1]] == [
            "MatMul", "Mul", "Add", "Softmax", "Dropout", "MatMul",
        ]  # fmt: skip
    assert len(core_spans(graph)) == 2


def test_fused_attention_and_classifiers_have_none() -> None:
    assert core_spans(import_network("gpt", layers=1, hidden=64, heads=4, seq_len=16, vocab=128).graph) == ()
    assert core_spans(import_network("resnet50").graph) == ()

"""Our counts beside XLA's, and beside published totals."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from hpdlf.experiments.validate_counts import Counted, compare, counted, on_padding
from hpdlf.models.onnxpp import import_model, work
from hpdlf.models.zoo import conv_bn_net, gpt_blocks, mlp

CORPUS = Path(__file__).parents[2].parent / "shared" / "onnx"
here = pytest.mark.skipif(not CORPUS.is_dir(), reason="the corpus of graphs (../shared/onnx) is not here")
# Multiply-adds of products, in millions, and parameters in millions: docs/counting.md has the sources.
PUBLISHED = {
    "resnet50.script": (4089, 25.557),
    "resnet18.script": (1814, 11.690),
    "vgg16.dynamo_dynbatch": (15470, 138.358),
    "alexnet.script": (714, 61.101),
    "densenet121.script": (2834, 7.979),
    "mobilenet_v3_large.script": (217, 5.483),
    "vit_b_16.script": (17564, 86.568),
}


def _transformer(*, layers: int, width: int, tokens: int, words: int, transform: bool) -> float:
    """Multiply-adds of one sample, in millions: layers, and the head with its transform (docs/counting.md)."""
    layer = 12 * width**2 * tokens + 2 * width * tokens**2
    head = (width * words + transform * width**2) * tokens
    return (layers * layer + head) / 1e6


# docs/counting.md says why.
FURTHER_OFF = ("silero_vad_16k_op15",)


def _counted(model: onnx.ModelProto, tmp_path: Path, *, loss: str, training: bool) -> Counted:
    onnx.save(model, tmp_path / "m.onnx")
    return counted("m", import_model(tmp_path / "m.onnx", loss=loss), batch=4, training=training)


@pytest.mark.parametrize("training", [False, True])
def test_perceptron_is_counted_as_by_xla(tmp_path: Path, training: bool) -> None:
    # The first layer's data need no gradient, which is counted all the same: it is made small.
    found = _counted(mlp((8, 256, 256, 256)), tmp_path, loss="softmax_xent", training=training)
    assert found.ratio == pytest.approx(1, rel=0.03)
    assert found.ours == found.without_padding


def test_transformer_is_counted_as_by_xla(tmp_path: Path) -> None:
    model = gpt_blocks(layers=1, width=64, heads=4, tokens=32)
    assert _counted(model, tmp_path, loss="mse", training=True).ratio == pytest.approx(1, rel=0.05)


def test_taps_on_padding_are_those_outside(tmp_path: Path) -> None:
    onnx.save(conv_bn_net(), tmp_path / "m.onnx")
    graph = import_model(tmp_path / "m.onnx", loss="softmax_xent").graph
    conv = next(o for o in graph.operators if o.op_type == "Conv")
    (_, channels, height, width), (filters, *_) = (graph.tensors[n].dims(1) for n in conv.inputs[:2])
    # A 3 x 3 window with pads of 1 at stride 1 sees 3 n - 2 of 3 n places along an axis.
    every, inside = 9 * height * width, (3 * height - 2) * (3 * width - 2)
    assert on_padding(conv, graph, 2) == 2 * 2 * filters * channels * (every - inside)


@here
@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_totals_are_the_published_ones(name: str) -> None:
    graph = import_model(CORPUS / f"{name}.onnx", without_weights=True).graph
    flops = sum(
        work(o, graph, batch=1, phase="forward").flops for o in graph.operators if o.family in ("conv", "matmul")
    )
    millions, parameters = PUBLISHED[name]
    assert flops / 2e6 == pytest.approx(millions, rel=0.01)
    assert graph.parameter_count / 1e6 == pytest.approx(parameters, rel=0.01)


@here
@pytest.mark.parametrize(
    ("name", "symbol", "words", "transform"),
    [("bert_base_mlm.dynamo_dynbatch", "s12", 30522, True), ("gpt2.dynamo_dynbatch", "s21", 50257, False)],
)
def test_transformers_do_what_the_formula_says(name: str, symbol: str, words: int, transform: bool) -> None:
    graph = import_model(CORPUS / f"{name}.onnx", without_weights=True, bind={symbol: 128}).graph
    flops = sum(work(o, graph, batch=1, phase="forward").flops for o in graph.operators if o.family == "matmul")
    expected = _transformer(layers=12, width=768, tokens=128, words=words, transform=transform)
    assert flops / 2e6 == pytest.approx(expected, rel=0.01)


@here
@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True])
def test_corpus_is_counted_as_by_xla(training: bool) -> None:
    rows = compare(CORPUS, only="", batch=2, extent=128, training=training)
    figures = {row.name: row.ratio for row in rows if isinstance(row, Counted)}
    assert len(figures) >= 28
    off = {name: ratio for name, ratio in figures.items() if not 0.95 <= ratio <= 1.05}
    assert set(off) <= set(FURTHER_OFF)

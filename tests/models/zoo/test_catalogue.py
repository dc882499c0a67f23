"""Parameters and multiply-adds as the papers, model cards and torchvision's documentation have them."""

import time

import onnx
import pytest

from hpdlf.errors import ModelError
from hpdlf.models.onnxpp import import_model, work
from hpdlf.models.zoo import NETWORKS, build, hyper_parameters, import_network
from hpdlf.models.zoo.__main__ import main

# Millions of parameters.
PARAMETERS = {
    "alexnet": 61.101,
    "bert_base": 110.106,
    "bert_large": 336.226,
    "efficientnet_b0": 5.289,
    "efficientnet_b4": 19.342,
    "efficientnet_b7": 66.348,
    "gpt2": 124.440,
    "gpt2_large": 774.030,
    "gpt2_xl": 1557.611,
    "inception_v3": 23.835,
    "llama2_7b": 6738.416,
    "llama2_70b": 68976.648,
    "llama3_8b": 8030.261,
    "llama3_405b": 405853.389,
    "mixtral_8x7b": 46702.793,
    "mobilenet_v2": 3.505,
    "mobilenet_v3_large": 5.483,
    "mobilenet_v3_small": 2.543,
    "mpt_7b": 6649.286 - 0.262,
    "resnet18": 11.690,
    "resnet34": 21.798,
    "resnet50": 25.557,
    "resnet101": 44.549,
    "resnet152": 60.193,
    "resnext50": 25.029,
    "t5_small": 60.507,
    "t5_base": 222.904,
    "t5_11b": 11307.321,
    "vgg11": 132.863,
    "vgg16": 138.358,
    "vgg19": 143.667,
    "vit_b16": 86.568,
    "vit_l16": 304.327,
    "vit_h14": 632.046,
}
# Billions of multiply-adds in products and convolutions for one sample.
PRODUCTS = {
    "alexnet": 0.714,
    "efficientnet_b0": 0.386,
    "inception_v3": 5.713,
    "mobilenet_v2": 0.301,
    "mobilenet_v3_large": 0.2166,
    "mobilenet_v3_small": 0.0565,
    "resnet18": 1.814,
    "resnet50": 4.089,
    "resnet152": 11.514,
    "vgg16": 15.470,
    "vit_b16": 17.564,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name: str) -> None:
    assert import_network(name, seed=None).graph.parameter_count / 1e6 == pytest.approx(PARAMETERS[name], abs=0.001)


@pytest.mark.parametrize("name", PRODUCTS)
def test_multiply_adds(name: str) -> None:
    graph = import_network(name, seed=None).graph
    flops = sum(
        work(o, graph, batch=1, phase="forward").flops for o in graph.operators if o.family in ("matmul", "conv")
    )
    assert flops / 2e9 == pytest.approx(PRODUCTS[name], rel=1e-3)


@pytest.mark.parametrize(
    ("hyper", "parameters"),
    [
        ({"layers": 12, "hidden": 768, "heads": 12, "seq_len": 65536}, 174_070_272),
        ({"layers": 24, "hidden": 1536, "heads": 12, "seq_len": 32768}, 807_656_448),
        ({"layers": 24, "hidden": 2048, "heads": 16, "seq_len": 2048}, 1_315_950_592),
        ({"layers": 32, "hidden": 4096, "heads": 32, "seq_len": 2048}, 6_658_859_008),
        ({"layers": 48, "hidden": 7168, "heads": 56, "seq_len": 2048}, 29_975_214_080),
    ],
)
def test_mpt_as_its_throughput_was_measured(hyper: dict[str, int], parameters: int) -> None:
    graph = import_network("mpt", positions="learned", bias=True, **hyper).graph
    assert graph.parameter_count == parameters


def test_every_network_is_standard_and_small(tmp_path) -> None:  # type: ignore[no-untyped-def]
    for name in ("deepseek_v2", "gpt3_175b", "llama3_405b", "mask_rcnn", "retinanet", "ssd_resnet34", "unet3d"):
        model = build(name)
        assert model.ByteSize() < 1e6
        onnx.save(model, tmp_path / f"{name}.onnx")
        graph = import_model(tmp_path / f"{name}.onnx", loss="softmax_xent", without_weights=True).graph
        assert graph.loss == "loss"


def test_a_trillion_parameters_take_no_time() -> None:
    start = time.perf_counter()
    graph = import_network("gpt", layers=128, hidden=25600, heads=160, vocab=51200, seq_len=2048).graph
    assert time.perf_counter() - start < 4  # 0.5 s where nobody else computes
    assert graph.parameter_count == pytest.approx(1.008e12, rel=1e-3)


def test_without_weights_means_without_training(tmp_path) -> None:  # type: ignore[no-untyped-def]
    onnx.save(build("resnet18", image=32, seed=None), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"resnet18\.weights' is missing.*--without-weights"):
        import_model(tmp_path / "m.onnx", loss="softmax_xent")


def test_mistakes_are_named() -> None:
    with pytest.raises(ModelError, match="did you mean resnet50"):
        build("resnet5o")
    with pytest.raises(ModelError, match="no hyper-parameter 'layer'; did you mean layers"):
        build("gpt", layer=3)
    with pytest.raises(ModelError, match="heads = 7: expected a divisor of hidden 768"):
        build("gpt", heads=7)
    with pytest.raises(ModelError, match="leave out the seed"):
        build("gpt3_175b", seed=0)
    assert hyper_parameters("resnet101")["depth"] == 101
    assert all("seed" in hyper_parameters(name) for name in NETWORKS)


def test_the_command_writes_files(tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "g.onnx"
    assert main(["gpt", "layers=2", "hidden=64", "heads=4", "attention=unfused", "-o", str(out)]) == 0
    assert import_model(out, without_weights=True).graph.name == "gpt"
    assert main([]) == 0
    assert main(["bert"]) == 0
    said = capsys.readouterr().out
    assert "llama3_8b" in said
    assert "predictions=None" in said
    assert main(["gpt", "layers", "-o", str(out)]) == 2
    assert main(["nothing"]) == 2
    assert "NAME=VALUE" in capsys.readouterr().err

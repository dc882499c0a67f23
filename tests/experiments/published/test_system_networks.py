"""Networks of rows."""

import pytest

from hpdlf.errors import ModelError
from hpdlf.experiments.published.system_networks import FAMILIES, LORA_RANK, network_of
from hpdlf.models.zoo import hyper_parameters, import_network

SIZES = {"layers": 2, "hidden": 64, "heads": 4, "seq_len": 32}


@pytest.mark.parametrize(
    ("model", "columns", "name"),
    [
        ("ResNet-50 v1.5", {}, "resnet"),
        ("SE-ResNeXt101-32x4d", {}, "se_resnext101"),
        ("RetinaNet-ResNeXt50 800", {}, "retinanet"),
        ("Mask R-CNN R50-FPN", {}, "mask_rcnn"),
        ("SSD-ResNet34 300", {}, "ssd_resnet34"),
        ("VGG-16", {}, "vgg"),
        ("InceptionV3", {}, "inception_v3"),
        ("AlexNet", {}, "alexnet"),
        ("EfficientNet-B4", {}, "efficientnet"),
        ("ViT-L/16", SIZES | {"seq_len": 224}, "vit"),
        ("3D U-Net", {}, "unet3d"),
        ("BERT-large", {}, "bert"),
        ("BERT-base pretrain", {"seq_len": 128}, "bert"),
        ("GPT-3 175B", SIZES, "gpt"),
        ("BLOOM-176B", SIZES, "gpt"),
        ("opt_13", SIZES, "gpt"),
        ("MPT-7b", SIZES, "gpt"),
        ("Llama-3.1-8B", SIZES, "llama"),
        ("Mixtral-8x7B", SIZES, "mixtral"),
        ("Qwen3-30B-A3B", SIZES, "mixtral"),
        ("deepseekv2 (4-layer slice)", SIZES, "deepseek_v2"),
        ("DeepSeek-V3", SIZES, "deepseek_v2"),
        ("T5-base", SIZES, "t5"),
        ("Transformer-big (WMT En-De)", {"layers": 12, "hidden": 1024, "heads": 16}, "transformer_big"),
    ],
)
def test_names(case, model, columns, name):
    network = network_of(case(model=model, **columns))
    assert network.name == name
    assert set(dict(network.hyper)) <= set(hyper_parameters(name))


def test_every_family_is_somebodys():
    assert len(FAMILIES) == len({pattern for pattern, _ in FAMILIES.values()})


def test_a_network_that_is_unknown_or_says_too_little(case):
    with pytest.raises(ModelError, match="no network for 'Oracle'"):
        network_of(case(model="Oracle"))
    with pytest.raises(ModelError, match="does not say hidden, heads"):
        network_of(case(model="GPT", layers=2, seq_len=32))


def test_parameters_are_those_that_rows_give(case):
    def count(**columns):
        network = network_of(case(**columns))
        return import_network(network.name, loss=network.loss, **dict(network.hyper)).graph.parameter_count

    sizes = {"layers": 12, "hidden": 768, "heads": 12, "seq_len": 2048, "vocab": 50368}
    assert count(model="MPT-125m", framework="pytorch/composer FSDP", **sizes) == pytest.approx(125.3e6, rel=0.01)
    llama = {"layers": 32, "hidden": 4096, "heads": 32, "seq_len": 8192, "vocab": 128256}
    assert count(model="Llama-3.1-8B", **llama) == pytest.approx(8.03e9, rel=0.001)
    assert count(model="BERT-large", seq_len=512) == pytest.approx(336e6, rel=0.01)


def test_adapters_of_llama_2(case):
    network = network_of(case(model="Llama-2-70B LoRA", layers=80, hidden=8192, heads=64, seq_len=8192))
    hyper = dict(network.hyper)
    assert (hyper["lora_rank"], hyper["kv_heads"], hyper["ffn"], hyper["vocab"]) == (LORA_RANK, 8, 28672, 32000)


def test_sequences_of_bert(case):
    nvidia = network_of(case(model="BERT-large", seq_len=512, round="v2.1", framework="pytorch NGC 22.09"))
    assert (dict(nvidia.hyper)["seq_len"], nvidia.packed, dict(nvidia.hyper)["padding"]) == (256, 1, False)
    packed = network_of(case(model="BERT-large", seq_len=512, round="v1.1", framework="tensorflow 2.5.1"))
    assert (dict(packed.hyper)["seq_len"], packed.packed) == (512, 2)
    padded = network_of(case(model="BERT-large", seq_len=512, round="v0.7", framework="tensorflow"))
    assert (dict(padded.hyper)["seq_len"], padded.packed, dict(padded.hyper)["padding"]) == (512, 1, True)


def test_attention_is_one_kernel_where_it_was(case):
    def attention(**columns):
        return dict(network_of(case(model="GPT", **SIZES, **columns)).hyper)["attention"]

    assert attention(framework="megatron") == "unfused"
    assert attention(framework="megatron", attention="flash") == "fused"
    assert attention(framework="nemo NGC 24.09") == "fused"

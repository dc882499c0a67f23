"""All networks by name: `build` makes the ONNX model, `import_network` its ONNX++, without a file between.

>>> model = build("gpt", layers=2, hidden=64, heads=4, seq_len=16, vocab=100)
>>> import_network("gpt", layers=2, hidden=64, heads=4, seq_len=16, vocab=100).graph.parameter_count
107520
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from onnx import ModelProto

from ...errors import ModelError
from ..onnxpp import Onnxpp, import_model
from ..onnxpp.problems import did_you_mean
from .bert import bert
from .detection import retinanet, ssd_resnet34
from .efficientnet import efficientnet
from .gpt import gpt, mpt
from .inception import inception_v3
from .llama import llama
from .mask_rcnn import mask_rcnn
from .mobilenet import mobilenet_v2, mobilenet_v3
from .moe import deepseek_v2, mixtral
from .resnet import resnet
from .translation import t5, transformer
from .unet import unet, unet3d
from .vgg import alexnet, vgg
from .vit import vit

__all__ = ["NETWORKS", "build", "hyper_parameters", "import_network"]

Network = Callable[..., ModelProto]

_LLAMA_3: dict[str, Any] = {"kv_heads": 8, "seq_len": 8192, "vocab": 128256, "rope_base": 5e5}
_OF_70B: dict[str, Any] = {"layers": 80, "hidden": 8192, "heads": 64, "kv_heads": 8, "ffn": 28672}
_RESNEXT: dict[str, Any] = {"groups": 32, "base_width": 4}


def _named(network: Network, **sizes: dict[str, Any]) -> dict[str, Network]:
    """One network at several sizes, each under its name."""
    return {name: partial(network, **hyper, name=name) for name, hyper in sizes.items()}


NETWORKS: Mapping[str, Network] = {
    "alexnet": alexnet,
    "bert": bert,
    **_named(
        bert,
        bert_base={"layers": 12, "hidden": 768, "heads": 12},
        bert_large={"layers": 24, "hidden": 1024, "heads": 16},
    ),
    "deepseek_v2": deepseek_v2,
    "efficientnet": efficientnet,
    **_named(efficientnet, **{f"efficientnet_b{size}": {"size": size} for size in range(8)}),
    "gpt": gpt,
    **_named(
        gpt,
        gpt2={},
        gpt2_medium={"layers": 24, "hidden": 1024, "heads": 16},
        gpt2_large={"layers": 36, "hidden": 1280, "heads": 20},
        gpt2_xl={"layers": 48, "hidden": 1600, "heads": 25},
        gpt3_175b={"layers": 96, "hidden": 12288, "heads": 96, "seq_len": 2048},
    ),
    "inception_v3": inception_v3,
    "llama": llama,
    **_named(
        llama,
        llama2_7b={},
        llama2_13b={"layers": 40, "hidden": 5120, "heads": 40, "ffn": 13824},
        llama2_70b=_OF_70B,
        llama3_8b={**_LLAMA_3, "ffn": 14336},
        llama3_70b={**_LLAMA_3, **_OF_70B},
        llama3_405b={**_LLAMA_3, "layers": 126, "hidden": 16384, "heads": 128, "ffn": 53248},
    ),
    "mask_rcnn": mask_rcnn,
    "mixtral": mixtral,
    **_named(
        mixtral,
        mixtral_8x7b={},
        mixtral_8x22b={"layers": 56, "hidden": 6144, "heads": 48, "ffn": 16384, "vocab": 32768},
    ),
    "mobilenet_v2": mobilenet_v2,
    "mobilenet_v3": mobilenet_v3,
    **_named(mobilenet_v3, **{f"mobilenet_v3_{size}": {"size": size} for size in ("large", "small")}),
    "mpt": mpt,
    **_named(
        mpt,
        mpt_7b={},
        mpt_30b={"layers": 48, "hidden": 7168, "heads": 64, "seq_len": 8192, "vocab": 50432},
    ),
    "resnet": resnet,
    **_named(
        resnet,
        **{f"resnet{depth}": {"depth": depth} for depth in (18, 34, 50, 101, 152)},
        resnext50={**_RESNEXT, "depth": 50},
        resnext101={**_RESNEXT, "depth": 101},
        se_resnext101={**_RESNEXT, "depth": 101, "squeeze_excite": True},
    ),
    "retinanet": retinanet,
    "ssd_resnet34": ssd_resnet34,
    "t5": t5,
    **_named(
        t5,
        t5_small={"layers": 6, "hidden": 512, "heads": 8, "ffn": 2048},
        t5_base={},
        t5_large={"layers": 24, "hidden": 1024, "heads": 16, "ffn": 4096},
        t5_3b={"layers": 24, "hidden": 1024, "heads": 32, "head_width": 128, "ffn": 16384},
        t5_11b={"layers": 24, "hidden": 1024, "heads": 128, "head_width": 128, "ffn": 65536},
    ),
    "transformer": transformer,
    **_named(
        transformer,
        transformer_base={"hidden": 512, "heads": 8},
        transformer_big={"hidden": 1024, "heads": 16, "dropout": 0.3},
    ),
    "unet": unet,
    "unet3d": unet3d,
    "vgg": vgg,
    **_named(vgg, **{f"vgg{depth}": {"depth": depth} for depth in (11, 13, 16, 19)}),
    "vit": vit,
    **_named(
        vit,
        vit_b16={},
        vit_l16={"layers": 24, "hidden": 1024, "heads": 16},
        vit_h14={"layers": 32, "hidden": 1280, "heads": 16, "patch": 14},
    ),
}


def _network(name: str) -> Network:
    if name not in NETWORKS:
        close = did_you_mean(name, NETWORKS)
        raise ModelError(f"there is no network {name!r}{close or ': there are ' + ', '.join(NETWORKS)}")
    return NETWORKS[name]


def hyper_parameters(name: str) -> dict[str, Any]:
    """The hyper-parameters of a network with their defaults. Raises ModelError where there is no such network."""
    network = _network(name)
    return {p.name: p.default for p in inspect.signature(network).parameters.values()}


def build(name: str, **hyper: Any) -> ModelProto:
    """The network `name` of :data:`NETWORKS`, with `hyper`-parameters where its defaults are not meant.

    Its weights have no values unless it gets a `seed`. Raises ModelError, which names what there is.
    """
    known = hyper_parameters(name)
    for key in hyper:
        if key not in known:
            close = did_you_mean(key, known)
            raise ModelError(f"{name} has no hyper-parameter {key!r}{close or ': it has ' + ', '.join(known)}")
    return _network(name)(**hyper)


def import_network(
    name: str, *, loss: str | None = "softmax_xent", train: str | None = None, freeze: str | None = None, **hyper: Any
) -> Onnxpp:
    """The network as :func:`hpdlf.models.onnxpp.import_model` gives it; the `loss` is appended where it has none."""
    model = build(name, **hyper)
    return import_model(
        f"{model.graph.name}.onnx",
        loss=loss,
        train=train,
        freeze=freeze,
        without_weights=True,
        content=model.SerializeToString(),
    )

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
from .gpt import gpt, mpt
from .llama import llama
from .mobilenet import mobilenet_v2
from .resnet import resnet
from .unet import unet, unet3d

__all__ = ["NETWORKS", "build", "hyper_parameters", "import_network"]

Network = Callable[..., ModelProto]

NETWORKS: Mapping[str, Network] = {
    "bert": bert,
    "bert_base": partial(bert, layers=12, hidden=768, heads=12, name="bert_base"),
    "bert_large": partial(bert, layers=24, hidden=1024, heads=16, name="bert_large"),
    "gpt": gpt,
    "gpt2": partial(gpt, name="gpt2"),
    "gpt2_medium": partial(gpt, layers=24, hidden=1024, heads=16, name="gpt2_medium"),
    "gpt2_large": partial(gpt, layers=36, hidden=1280, heads=20, name="gpt2_large"),
    "gpt2_xl": partial(gpt, layers=48, hidden=1600, heads=25, name="gpt2_xl"),
    "gpt3_175b": partial(gpt, layers=96, hidden=12288, heads=96, seq_len=2048, name="gpt3_175b"),
    "llama": llama,
    "llama2_7b": partial(llama, name="llama2_7b"),
    "llama2_70b": partial(llama, layers=80, hidden=8192, heads=64, kv_heads=8, ffn=28672, name="llama2_70b"),
    "llama3_8b": partial(
        llama, kv_heads=8, ffn=14336, seq_len=8192, vocab=128256, rope_base=500000.0, name="llama3_8b"
    ),
    "llama3_70b": partial(
        llama,
        layers=80,
        hidden=8192,
        heads=64,
        kv_heads=8,
        ffn=28672,
        seq_len=8192,
        vocab=128256,
        rope_base=500000.0,
        name="llama3_70b",
    ),
    "llama3_405b": partial(
        llama,
        layers=126,
        hidden=16384,
        heads=128,
        kv_heads=8,
        ffn=53248,
        seq_len=8192,
        vocab=128256,
        rope_base=500000.0,
        name="llama3_405b",
    ),
    "mobilenet_v2": mobilenet_v2,
    "mpt": mpt,
    "resnet": resnet,
    "resnet18": partial(resnet, depth=18),
    "resnet34": partial(resnet, depth=34),
    "resnet50": partial(resnet, depth=50),
    "resnet101": partial(resnet, depth=101),
    "resnet152": partial(resnet, depth=152),
    "resnext50": partial(resnet, depth=50, groups=32, base_width=4, name="resnext50"),
    "resnext101": partial(resnet, depth=101, groups=32, base_width=4, name="resnext101"),
    "se_resnext101": partial(resnet, depth=101, groups=32, base_width=4, squeeze_excite=True, name="se_resnext101"),
    "unet": unet,
    "unet3d": unet3d,
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

"""Networks for pictures: sizes on the way, what is frozen, and that their losses are numbers."""

import numpy as np
import pytest

from hpdlf.errors import ModelError
from hpdlf.models.onnxpp import work
from hpdlf.models.zoo import NETWORKS, build, import_network


def test_ssd_has_the_boxes_of_its_paper() -> None:
    graph = import_network("ssd_resnet34").graph
    assert [graph.tensors[t].dims(2) for t in graph.outputs] == [(2, 8732, 81), (2, 8732, 4)]
    assert set(graph.targets) == {"labels", "boxes_to_find"}


def test_retinanet_trains_what_the_benchmark_trains() -> None:
    graph = import_network("retinanet").graph
    assert [graph.tensors[t].dims(1) for t in graph.outputs] == [(1, 120087, 264), (1, 120087, 4)]
    assert "stage1.0.conv1.weight" in graph.constants
    assert "stage2.0.conv1.weight" in graph.parameters
    assert not any(".norm." in p for p in graph.parameters)
    assert not graph.state
    assert sum(graph.tensors[p].elements(1) for p in graph.parameters if p.startswith("scores.4")) == 9 * 264 * 2305


def test_mask_rcnn_has_the_parameters_of_its_kind() -> None:
    """torchvision's has 44,401,393 for 91 classes, of which the stem and the first stage stay."""
    graph = import_network("mask_rcnn", classes=91).graph
    frozen = sum(graph.tensors[c].elements(1) for c in graph.constants if c.endswith("weight") and ".norm." not in c)
    assert graph.parameter_count + frozen == 44_401_393
    pooled = graph.tensors[graph.operator["box_head.concat"].outputs[0]]
    assert pooled.dims(2) == (1024, 256, 7, 7)


def test_unet3d_is_that_of_the_benchmark() -> None:
    graph = import_network("unet3d").graph
    assert graph.parameter_count == pytest.approx(31.19e6, rel=1e-3)
    assert graph.tensors[graph.outputs[0]].dims(1) == (1, 3, 128, 128, 128)
    assert graph.tensors["down5.conv2.norm.instancenormalization"].dims(1)[1:] == (320, 4, 4, 4)


def test_version_1_has_its_strides_earlier() -> None:
    def flops(version: str) -> int:
        graph = import_network("resnet50", version=version).graph
        return sum(work(o, graph, batch=1, phase="forward").flops for o in graph.operators if o.family == "conv")

    assert flops("1") / 2e9 == pytest.approx(3.86, abs=0.01)
    assert flops("1.5") > flops("1")


def test_mobilenet_v3_is_torchvisions() -> None:
    """Exactly its parameters; squeezed to a multiple of 8 that is not more than a tenth below a quarter."""
    for size, parameters, squeezed in (("large", 5_483_032, 24), ("small", 2_542_856, 8)):
        graph = import_network(f"mobilenet_v3_{size}").graph
        assert graph.parameter_count == parameters
        first = next(p for p in graph.parameters if p.endswith("squeeze.weight"))
        assert graph.tensors[first].dims(1)[0] == squeezed
        slopes = [o.attributes["alpha"] for o in graph.operators if o.op_type == "HardSigmoid"]
        assert slopes == pytest.approx([1 / 6] * len(slopes))
    with pytest.raises(ModelError, match=r"size = 'medium': expected large or small"):
        build("mobilenet_v3", size="medium")


SMALL = {
    "alexnet": {"image": 64, "classes": 10},
    "efficientnet": {"image": 64, "classes": 10},
    "inception_v3": {"image": 75, "classes": 10},
    "mobilenet_v2": {"image": 32, "classes": 10},
    "mobilenet_v3_large": {"image": 32, "classes": 10},
    "mobilenet_v3_small": {"image": 32, "classes": 10},
    "resnet": {"depth": 50, "image": 32, "classes": 10},
    "se_resnext101": {"depth": 50, "image": 32, "classes": 10},
    "unet": {"image": 32, "channels": 4, "levels": 2},
    "unet3d": {"size": 8, "channels": (4, 8, 8)},
    "vgg": {"depth": 11, "image": 32, "classes": 10},
    "vit": {"layers": 2, "hidden": 32, "heads": 4, "image": 32, "patch": 8, "classes": 10},
}


@pytest.mark.parametrize("name", SMALL)
def test_networks_run(name: str, run) -> None:  # type: ignore[no-untyped-def]
    hyper = SMALL[name] | ({"dropout": 0.0} if "dropout" in _hyper(name) else {})
    for output, values in run(name, **hyper).items():
        assert np.isfinite(values).all(), output
        assert values.std() > 0 or not values.shape


def _hyper(name: str) -> set[str]:
    import inspect

    return set(inspect.signature(NETWORKS[name]).parameters)

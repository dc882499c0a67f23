"""The published tables of energy: readers on tables made here, the report's fields, and the bars on the real ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpdlf.errors import DataError
from hpdlf.experiments.published import getzner, ml_energy, zeus
from hpdlf.experiments.published.torchvision_layers import layers_of
from hpdlf.experiments.validate_energy import rows
from hpdlf.models.cost import power_parameters

DATA = Path(__file__).parents[2].parent / "shared" / "data"
ZEUS = "gpu,dataset,network,batch_size,optimizer,power_limit_W,time_per_epoch_s,average_power_W\n"
GETZNER = (
    "file,module,rep,batch,macs,input_size,output_size,image_size,kernel_size,in_channels,out_channels,stride,padding,"
    "arch_layer,forward_passes,time_per_fwd_s,cpu_energy_per_fwd_J,cpu_power_W,avg_cpu_power_W,cpu_model\n"
)


def put(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return folder


def test_nothing_is_said_of_tables_that_are_not_there(tmp_path: Path) -> None:
    assert rows(tmp_path) == []


def test_unknown_devices_and_shapes_are_refused_and_counted(tmp_path: Path) -> None:
    put(tmp_path, zeus.FILE, ZEUS + "X9000,imagenet,resnet50,64,sgd,300,10.0,250.0\nA40,imagenet,resnet50,64,sgd,300,9,260\n")
    line = "architectures/00,Conv2d,1,8,1,,,,,,,,,mystery/3,9,0.5,37.5,75,75,Gold 5120\n"
    glitch = "linear/00,Linear,1,8,1,64,64,,,,,,,,9,0.5,10,20,20,Gold 5120\n"
    put(tmp_path, getzner.FILE, GETZNER + line + glitch)
    found = {(r["device"], r["op"]): r for r in rows(tmp_path)}
    assert found["X9000", "power"]["refused"] == {"no profile of X9000": 1}
    assert found["X9000", "power"]["median_ape"] == 1.0
    assert found["A40", "power"]["median_ape"] < 0.2
    assert found["Gold 5120", "Conv2d"]["refused"] == {"the shape is not known": 1}
    assert ("Gold 5120", "Linear") not in found


def test_a_table_without_its_columns_is_refused(tmp_path: Path) -> None:
    put(tmp_path, zeus.FILE, "gpu,network\nA40,resnet50\n")
    with pytest.raises(DataError, match="has no column"):
        rows(tmp_path)


def test_serving_rows_that_lack_a_number_are_refused(tmp_path: Path) -> None:
    header = ("task,activated_params_billions,avg_power_watts,gpu_model,model_id,num_gpus,total_params_billions,"
              "weight_precision,avg_batch_size,avg_output_len\n")  # fmt: skip
    put(tmp_path, ml_energy.FILE, header + "gpqa,8,400,H100,a/b,1,8,bfloat16,64,800\ngpqa,8,400,H100,a/b,1,8,bfloat16,,800\n")
    (row,) = rows(tmp_path)
    assert (row["n"], row["refused"]) == (2, {"no avg_batch_size": 1})


def test_networks_have_the_layers_and_work_that_their_papers_say() -> None:
    flops = {name: sum(o.flops for o in layers_of(name, batch=1) if o.family in ("conv", "matmul")) for name in
             ("alexnet", "vgg11", "vgg16", "vgg19")}  # fmt: skip
    assert flops == pytest.approx({"alexnet": 1.43e9, "vgg11": 15.2e9, "vgg16": 30.9e9, "vgg19": 39.3e9}, rel=0.02)


@pytest.mark.skipif(not DATA.is_dir(), reason="the public measurements (../shared/data) are not here")
def test_known_devices_are_predicted_well() -> None:
    found = {(r["device"], r["op"]): r for r in rows(DATA)}
    assert all(found[gpu, "power"]["median_ape"] < 0.02 for gpu in ("P100", "V100", "RTX6000"))
    assert found["Gold 5120", "Conv2d"]["median_ape"] < 0.02


def test_the_shipped_report_of_what_was_left_out_meets_the_bars() -> None:
    folder = Path(power_parameters.__file__).parent
    power = json.loads((folder / "power.json").read_text())["report"]
    layers = json.loads((folder / "cpu_energy.json").read_text())["report"]
    assert power["unseen power limit"]["median_ape"] <= 0.015
    assert power["unseen batch size"]["median_ape"] <= 0.015
    assert all(power["unseen GPU"][gpu]["median_ape"] <= 0.11 for gpu in ("P100", "V100", "RTX6000"))
    assert all(part["median_ape"] <= 0.04 for part in layers["layers of a network"].values())
    assert all(part["median_ape"] <= 0.06 for part in layers["whole networks"].values())

"""Names of devices as published tables spell them: all find their profile, or are refused with the nearest names."""

import csv
from pathlib import Path

import pytest

from hpdlf.errors import ProfileError
from hpdlf.hwprofiles import find_device, load_device, load_profile, load_region
from hpdlf.hwprofiles.loader import SHIPPED, profile_files
from hpdlf.hwprofiles.names import Known, match, words

DATA = Path(__file__).parents[2].parent / "shared" / "data"
FOUND = {
    "A100-PCIE-40GB": "A100-PCIE-40",
    "NVIDIA A100-SXM4-80GB": "A100-SXM-80",
    "A100 80GB SXM4": "A100-SXM-80",
    "NVIDIA A100-SXM-80GB CTS": "A100-SXM-80",
    "Tesla V100-PCIE-32GB": "V100-PCIE-32",
    "V100-SXM2-16GB": "V100-SXM2",
    "Nvidia Tesla V100-SXM2-32GB": "V100-SXM2-32",
    "NVIDIA V100-SXM3-32GB (450W)": "V100-SXM3-32",
    "Nvidia Tesla V100S-PCIe-32GB": "V100S-PCIE-32",
    "NVIDIA H100 80GB HBM3": "H100-SXM",
    "H100-PCIE-80GB": "H100-PCIE-80",
    "NVIDIA H100 PCIe": "H100-PCIE-80",
    "H100 SXM5": "H100-SXM",
    "H100 NVL Tensor Core GPU (PCIe)": "H100-NVL",
    "H200_140GB_SXM": "H200-SXM",
    "AMD Instinct MI250X": "MI250X-GCD",
    "MI250X-module": "MI250X-module",
    "MI250": "MI250-GCD",
    "MI250 (one GCD)": "MI250-GCD",
    "AMD Instinct MI325X 256GB HBM3E DLC": "MI325X",
    "GTX1080Ti": "GTX-1080-Ti",
    "GeForce GTX 1080 Ti": "GTX-1080-Ti",
    "TitanX": "TITAN-X-Maxwell",
    "TitanX_Pascal": "TITAN-X-Pascal",
    "Quadro RTX 6000": "Quadro-RTX-6000",
    "RTX6000": "Quadro-RTX-6000",
    "RTX 6000 Ada": "RTX-6000-Ada",
    "A6000": "RTX-A6000",
    "Gold 5120": "Xeon-Gold-5120",
    "Intel(R) Xeon(R) Gold 6148 CPU @ 2.40GHz": "Xeon-Gold-6148",
    "Intel(R) Xeon(R) Platinum 8480C": "Xeon-Platinum-8480",
    "Xeon Platinum 8480+": "Xeon-Platinum-8480",
    "AMD EPYC 7742 64-Core Processor": "EPYC-7742",
    "KNL7250": "Xeon-Phi-7250",
    "P100": "P100-SXM2",
    "P100-PCIE-16GB": "P100-PCIE-16",
    "A40": "A40",
    "a10g": "A10G",
    "L40S": "L40S",
    "B200-SXM": "B200-SXM",
    "NVIDIA Blackwell GPU (B200-SXM-180GB)": "B200-SXM",
    "NVIDIA Blackwell Ultra GPU (B300-SXM-270GB)": "B300-SXM",
    "NVIDIA Blackwell Ultra GPU (GB300)": "GB300",
    "GH200": "GH200-96",
    "TPU v3": "TPU-v3",
    "TPUv4": "TPU-v4",
    "TPU-trillium": "TPU-v6e",
}
# Of the published tables at hand: what no profile describes, and what could be several devices.
UNKNOWN = {"Raspberry_Pi_3", "iPhone_6", "iPhone_7", "Graphcore IPU GC200", "Ascend910", "TPU", ""}
UNKNOWN |= {"AMD Radeon RX 7900 XTX", "NVIDIA A100"}


@pytest.fixture(autouse=True)
def no_own_profiles(tmp_path, monkeypatch):
    monkeypatch.setenv("HPDLF_PROFILES", str(tmp_path))


@pytest.mark.parametrize(("name", "device"), FOUND.items())
def test_a_published_name_finds_its_device(name, device):
    assert find_device(name) == device
    assert load_device(name).name == device


def test_case_separators_and_vendor_words_do_not_matter():
    for name, device in FOUND.items():
        for spelt in (name.upper(), name.lower().replace("-", " "), f"NVIDIA {name}", name.replace(" ", "_")):
            assert find_device(spelt) == device, spelt


def test_every_profile_answers_to_its_own_name_and_aliases():
    for name, path in profile_files("device"):
        device = load_device(path)
        assert find_device(name) == name
        for alias in device.aliases:
            assert find_device(alias) == name, alias


@pytest.mark.parametrize("name", ["A100", "A100 80GB", "NVIDIA A100-SXM4", "V100-SXM-32GB"])
def test_an_ambiguous_name_is_refused_with_all_that_it_could_be(name):
    with pytest.raises(ProfileError, match=r"could be '.*' or '.*'; say which"):
        find_device(name)


@pytest.mark.parametrize(
    ("name", "near"), [("MI251", "MI250-GCD"), ("Xeon Gold 6248R", "Xeon-Gold-6248"), ("Gaudi22", "Gaudi2")]
)
def test_an_unknown_name_is_refused_with_the_nearest(name, near):
    with pytest.raises(ProfileError, match=rf"there is no device '{name}'; did you mean .*'{near}'"):
        find_device(name)


@pytest.mark.parametrize("name", ["", "nvidia", "80GB", "SXM", "xeon", "gpu", "cpu 2.4GHz"])
def test_what_names_no_device_finds_none(name):
    with pytest.raises(ProfileError, match="no device"):
        find_device(name)


@pytest.mark.skipif(not DATA.is_dir(), reason="the public measurements (../shared/data) are not here")
def test_every_device_of_the_published_tables_is_found():
    names = set()
    for file, column in (
        ("neusight/*.csv", "device"),
        ("deepbench/*.csv", "device"),
        ("justus2018/*.csv", "device"),
        ("simumax/*.csv", "device"),
        ("zeus_nsdi23/*.csv", "gpu"),
        ("mlperf_training/runs.csv", "accelerator"),
    ):
        for path in DATA.glob(file):
            with path.open(newline="") as table:
                names |= {row.get(column) or "" for row in csv.DictReader(table)}
    assert len(names) > 30
    missed = set()
    for name in names:
        try:
            find_device(name)
        except ProfileError:
            missed.add(name)
    assert missed <= UNKNOWN


def test_a_name_that_leaves_the_memory_open_yields_to_one_that_names_it():
    devices = [Known("X-16", ("X",), 16, ()), Known("X-32", (), 32, ())]
    assert match("X", devices).name == "X-16"
    assert match("X 32GB", devices).name == "X-32"
    assert match("X 24GB", devices) == (None, ())


def test_words_of_forms_and_sizes():
    assert words("A100-SXM4-80GB") == words("nvidia a100 sxm4 80 GiB") == {"a100", "sxm", "sxm4", "80"}
    assert words("PCI-E") == words("PCIe") == {"pcie"}
    assert words("RTX A6000") == words("RTXA6000") == {"a6000"}


def test_an_own_profile_joins_the_names(tmp_path):
    (tmp_path / "devices").mkdir()
    text = (SHIPPED / "devices" / "T4.toml").read_text().replace('"Tesla T4"', '"T4 of our lab"')
    (tmp_path / "devices" / "our-T4.toml").write_text(text.replace('name = "T4"', 'name = "our-T4"'))
    assert load_device("T4 of our lab").name == "our-T4"
    assert load_device("Tesla T4").name == "T4"


def test_regions_and_other_kinds_have_names_too():
    assert load_region("DE") == load_region("Germany") == load_region("germany")
    assert load_profile("Tesla T4").name == "T4"
    assert load_profile("dgx-a100:2").n_nodes == 2
    assert load_profile("nvlink3").name == "nvlink3"
    assert load_profile("Germany").name == "germany"
    with pytest.raises(ProfileError, match="no region 'atlantis'"):
        load_region("Atlantis")

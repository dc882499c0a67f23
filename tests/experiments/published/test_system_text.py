"""What the words of a row mean."""

import pytest

from hpdlf.errors import ProfileError
from hpdlf.experiments.published.system_text import dimensions, machine, precision, schedule


@pytest.mark.parametrize(
    ("hardware", "device"),
    [
        ("A100-SXM4-80GB (a system, 8xNVLink3/NVSwitch)", "A100-SXM-80"),
        ("NVIDIA A100-SXM4-40GB (400W)", "A100-SXM-40"),
        ("NVIDIA A100-PCIe-40GB (250W)", "A100-PCIE-40"),
        ("A100-SXM (8 in a node)", "A100-SXM-80"),
        ("NVIDIA Blackwell GPU (B200-SXM-180GB)", "B200-SXM"),
        ("NVIDIA Blackwell Ultra GPU (GB300)", "GB300"),
        ("DGX-GB200", "GB200"),
        ("DGX-H100", "H100-SXM"),
        ("P100-SXM2/PCIe-16GB", "P100-SXM2"),
        ("Nvidia Tesla V100", "V100-SXM2"),
        ("K80 (p2.8xlarge, 8 dies in a node)", "K80"),
        ("TPUv2 (1 device = 4 chips)", "TPU-v2"),
        ("TPU-trillium", "TPU-v6e"),
        ("Habana Gaudi", "Gaudi"),
        ("AMD Instinct MI300X 192GB HBM3", "MI300X"),
        ("Intel(R) Xeon(R) Platinum 8380H CPU @ 2.90GHz x8 per node", "Xeon-Platinum-8380H"),
        ("Xeon Platinum 8124M c5.18xlarge (2 sockets, 36 cores)", "Xeon-Platinum-8124M"),
        ("H100-96GB HBM2e 2.4TB/s (8 in a node)", "H100-SXM-96"),
    ],
)
def test_devices(case, hardware, device):
    assert machine(case(hardware=hardware)).device == device


def test_a_device_that_nobody_knows(case):
    with pytest.raises(ProfileError, match="no profile is known for the device of 'Abacus 3000'"):
        machine(case(hardware="Abacus 3000"))


def test_networks_and_limits(case):
    said = machine(case(hardware="A100-SXM (8/node NVSwitch, 4x HDR IB)"))
    assert (said.fabric, said.adapters, said.limit_w) == ("infiniband", 4, None)
    assert machine(case(hardware="V100-SXM3-32GB (450W)")).limit_w == 450.0
    assert machine(case(hardware="V100-SXM3-32GB (DGX-2H)")).limit_w == 450.0
    assert machine(case(hardware="V100", note="100 Gbit/s RoCE")).fabric == "ethernet"
    assert machine(case(hardware="K80 (p2.8xlarge)")).system == "aws-p2.8xlarge"
    assert machine(case(hardware="Xeon Platinum 8380H x8 per node")).sockets == 8


def test_schedules(case):
    said = schedule(case(schedule="FSDP FULL_SHARD, grad_accum 21"))
    assert (said.zero, said.accumulation, said.solver) == (3, 21, "synchronous")
    assert schedule(case(schedule="FSDP SHARD_GRAD_OP, grad_accum 1")).zero == 2
    assert schedule(case(schedule="1F1B, 8 microbatches, sequence parallel")).accumulation == 8
    assert schedule(case(schedule="1F1B", recompute="selective + sequence parallel")).sequence_parallel
    assert schedule(case(note="distributed optimizer, flash attention")).zero == 1
    assert schedule(case(note="accumulated batch per GPU 4096; LAMB; accumulation steps 64")).accumulation == 64
    assert schedule(case(schedule="interleaved 1F1B")).interleaved
    assert schedule(case(schedule="data parallel, parameter_server, variables on CPU")).parameter_server
    assert schedule(case(schedule="zero bubble")).kind == "zero_bubble"
    plain = schedule(case())
    assert (plain.zero, plain.accumulation, plain.kind, plain.interleaved) == (None, None, "1f1b", False)


@pytest.mark.parametrize(
    ("text", "fields", "device", "name", "mixed"),
    [
        ("fp32 (TF32 off)", {}, "A100-PCIE-40", "float32", False),
        ("tf32", {}, "A100-SXM-80", "tf32", False),
        ("amp_bf16", {}, "H100-SXM", "bfloat16", True),
        ("amp_fp8", {}, "H100-SXM", "float8", True),
        ("mixed", {"round": "v0.7"}, "V100-SXM2", "float16", True),
        ("mixed", {"round": "v0.7"}, "TPU-v4", "bfloat16", True),
        ("mixed", {"round": "v4.1", "framework": "nemo NGC 24.09"}, "H100-SXM", "float8", True),
        ("mixed (fp8 for H100 gpt3/bert)", {"round": "v2.1"}, "H100-SXM", "float8", True),
        ("", {}, "V100-SXM2", "float32", False),
    ],
)
def test_precisions(case, text, fields, device, name, mixed):
    language = "fp8" in text or "nemo" in fields.get("framework", "")
    said = precision(case(precision=text, **fields), device, language_model=language, eight_bits=True)
    assert (said.name, said.mixed) == (name, mixed)


def test_the_note_has_sizes(case):
    said = dimensions(
        case(
            note="MoE/MLA; 160 experts, top-6, expert FFN 1536, shared-expert FFN 3072, first layer dense with FFN 12288, "
            "MLA q_lora 1536 kv_lora 512 head dim 128 + 64 rotary, capacity factor 1"
        )
    )
    assert (said.experts, said.top_k, said.expert_feed_forward, said.shared_feed_forward) == (160, 6, 1536, 3072)
    assert (said.first_dense_feed_forward, said.q_lora, said.kv_lora, said.head_dim, said.rotary_dim) == (
        12288,
        1536,
        512,
        128,
        64,
    )
    assert said.capacity_factor == 1.0
    grouped = dimensions(case(note="GQA, SwiGLU; kv heads 8, dense FFN 28672; accumulated batch/GPU 8192"))
    assert (grouped.kv_heads, grouped.feed_forward, grouped.samples_per_device) == (8, 28672, 8192)
    assert dimensions(case(note="batch 2560 tokens per GPU")).tokens_per_device == 2560
    assert dimensions(case(note="epochs field of the log 4.14e+05")).run_samples == 4.14e5
    assert dimensions(case(note="node-level DC power")).direct_current
    nothing = dimensions(case())
    assert nothing.experts is None
    assert not nothing.validated

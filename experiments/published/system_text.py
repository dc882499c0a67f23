"""What the free text of a row says: hardware, schedule, precision, note. Every rule that reads words stands in this file.

Each table below is a list of (pattern, what it means), read from top to bottom over the text in small letters; the first that fits
decides, unless it is said otherwise. What a text does not say is None or False here, and inferred from numbers in
:mod:`.system_hardware` and :mod:`.system_strategy`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

from ...errors import ProfileError
from ...hwprofiles import find_device
from ...hwprofiles.loader import profile_files
from .system_cases import Case

__all__ = [
    "Dimensions",
    "Machine",
    "Precision",
    "Schedule",
    "dimensions",
    "machine",
    "precision",
    "schedule",
    "software_name",
]

T = TypeVar("T")

# Words of the hardware's text that name a machine: the cluster's profile. An instance of a cloud is found by its profile's name
# (p2.8xlarge is aws-p2.8xlarge) and stands in no table.
SYSTEMS = (
    (r"jean ?zay", "jean-zay-a100"),
    (r"hgx node.*8462y|immersion", "hgx-h100-immersed"),
    (r"gaudi ?([23])", r"gaudi\1-8"),
    (r"\bgaudi\b|hls-1h", "hls-1h"),
    (r"meta.*h100|h100.*meta", "meta-h100"),
    (r"grand teton", "meta-h100"),
)
# Devices that are sold with slower NVLink, bytes per second of one device in one direction.
SLOWER_LINKS = ((r"\b[ah]800", 200e9),)
# Devices whose name in a text is not a name that profiles have, or leaves open what it means.
DEVICES = (
    (r"\bh100-96gb hbm2e", "H100-SXM-96"),
    (r"\bgb200", "GB200"),
    (r"\bgb300", "GB300"),
    (r"\bdgx-h100", "H100-SXM"),
    (r"\bdgx-h200", "H200-SXM"),
    (r"\bdgx-b(\d)00", r"B\g<1>00-SXM"),
    (r"\bv100-sxm3", "V100-SXM3-32"),
    (r"\ba100-sxm(?!\S*-\d\dgb)", "A100-SXM-80"),  # the larger of the two is what clusters were mostly built of
    (r"\ba100-pcie(?!\S*-\d\dgb)", "A100-PCIE-80"),
    (r"^(nvidia )?a100( gpu)?$", "A100-SXM-80"),
    (r"\bgaudi ?3", "Gaudi3"),
    (r"\bgaudi ?2", "Gaudi2"),
    (r"\bgaudi\b", "Gaudi"),
    (r"\bh800", "H100-SXM"),
    (r"\ba800-sxm", "A100-SXM-80"),
    (r"\bxeon.*8124m", "Xeon-Platinum-8124M"),
    (r"trillium|tpu[- ]?v6", "TPU-v6e"),
)
# Machines whose devices draw more or less than their profile says, where the text gives no watts.
LIMITS = ((r"dgx-?2h", 450.0),)
# Networks that a text names, as fabrics of links (hwprofiles.FABRICS).
FABRICS = (
    (r"omni-?path|opa\b", "omni-path"),
    (r"\broce\b|ethernet|gbe\b", "ethernet"),
    (r"\befa\b", "efa"),
    (r"infiniband|\bib\b|\bhdr\b|\bedr\b|\bndr\b|\bxdr\b|\bfdr\b", "infiniband"),
)
_MEMORY_FORMS = (r"\(.*$", r"/.*$", r"\bhgx\b.*$", r"\bx\d+ per node.*$", r",.*$")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """device    name of a device's profile
    system    name of a cluster's profile that the text names; None where it names none
    link_bytes_per_s   of a device within its node, where it is not what such devices mostly have
    fabric    of the network between nodes
    adapters  of a node for it, as "4x HDR" says
    limit_w   power limit of a device
    sockets   processors in a node of a CPU cluster
    """

    device: str
    system: str | None
    link_bytes_per_s: float | None
    fabric: str | None
    adapters: int | None
    limit_w: float | None
    sockets: int | None


def machine(case: Case) -> Machine:
    """What `hardware` says, with what the note says of the network.

    Raises:
        ProfileError: no profile is known for the device.
    """
    text = case.hardware.lower()
    instance = next(
        (n for n, _ in profile_files("cluster") if (tail := n.partition("-")[2]) and "." in tail and tail in text), None
    )
    words = f"{text}; {case.schedule.lower()}; {case.note.lower()}"
    watts = re.search(r"\((\d+(?:\.\d+)?) ?w\)", text)
    adapters = re.search(r"\b(\d+)x (?:hdr|edr|ndr|xdr|fdr|omni|\d+ ?gb)", text)
    sockets = re.search(r"\bx(\d+) per node|\((\d+) sockets", text)
    return Machine(
        device=_device(case.hardware),
        system=instance or _expanded(SYSTEMS, text),
        link_bytes_per_s=_first(SLOWER_LINKS, text),
        fabric=_first(FABRICS, words),
        adapters=int(adapters[1]) if adapters else None,
        limit_w=float(watts[1]) if watts else _first(LIMITS, text),
        sockets=int(sockets[1] or sockets[2]) if sockets else None,
    )


def _device(hardware: str) -> str:
    """The profile of the device: by the table above, else by the longest part of the text that names one device."""
    text = hardware.lower()
    if named := _expanded(DEVICES, text):
        return named
    trials = [hardware, *(re.sub(form, "", text) for form in _MEMORY_FORMS)]
    trials += re.findall(r"\(([^)]*)\)", hardware)
    words = re.sub(r"\(.*?\)", " ", hardware).split()
    trials += [" ".join(words[:n]) for n in range(len(words) - 1, 0, -1)]
    trials += words
    for trial in trials:
        try:
            return find_device(trial)
        except ProfileError:
            continue
    raise ProfileError(
        f"no profile is known for the device of '{hardware}'; `hpdlf profile list` shows those there are"
    )


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """accumulation        microbatches of a replica, as "grad_accum 4", "accumulation steps 64" or "8 microbatches" say
    interleaved         stages are dealt round, how many is not told here
    kind                "1f1b", "gpipe" or "zero_bubble"
    zero                what replicas share (0 to 3)
    sequence_parallel   between products, tensor ranks share the sequence
    parameter_server    variables lie in the host's memory, gradients go there
    solver              "synchronous", "asynchronous" or "local"
    """

    accumulation: int | None
    interleaved: bool
    kind: str
    zero: int | None
    sequence_parallel: bool
    parameter_server: bool
    solver: str


ACCUMULATION = r"grad(?:ient)?[_ ]accum(?:ulation)?(?: steps)? (\d+)|accumulation steps (\d+)|\b(\d+) microbatches"
SHARDING = (
    (r"full_shard|zero-?3|fsdp", 3),
    (r"shard_grad_op|zero-?2", 2),
    (r"zero-?1|distributed optimizer", 1),
)
KINDS = ((r"zero[- ]bubble|zb-?h1|\bzbv\b", "zero_bubble"), (r"gpipe", "gpipe"))
SOLVERS = ((r"\basync(hronous)? (sgd|data|update|training)", "asynchronous"), (r"\blocal sgd|diloco", "local"))


def schedule(case: Case) -> Schedule:
    """What `schedule`, `recompute` and `note` say of the order of work."""
    plan = case.schedule.lower()
    text = f"{plan}; {case.note.lower()}"
    many = re.search(ACCUMULATION, text)
    return Schedule(
        accumulation=int(next(group for group in many.groups() if group)) if many else None,
        interleaved="interleaved" in plan,
        kind=_first(KINDS, plan) or "1f1b",
        zero=_first(((r"shard_grad_op", 2), *SHARDING), text),
        sequence_parallel="sequence parallel" in f"{plan}; {case.recompute.lower()}",
        parameter_server="parameter_server" in plan,
        solver=_first(SOLVERS, plan) or "synchronous",
    )


@dataclass(frozen=True, kw_only=True)
class Precision:
    """name    of :data:`hpdlf.models.plan.PRECISIONS`
    mixed   whether gradients and optimiser stay in float32
    narrow  products with weights go to the narrowest units: 4 bits on Blackwell, integers of 8 bits on TPU v5
    """

    name: str
    mixed: bool
    narrow: bool = False


# The words of `precision` that say all. "mixed" alone does not: see `precision`.
PRECISIONS = (
    (r"fp8 for h100 gpt3/bert|fp8 for gpt3/llama2/bert", "fp8 for transformers"),
    (r"nvfp4|mxfp4|fp4", "4 bits"),
    (r"fp8|float8", "float8"),
    (r"bf16 or fp16", "bfloat16"),
    (r"bf16|bfloat16", "bfloat16"),
    (r"fp16|float16|half", "float16"),
    (r"tf32 off", "float32"),
    (r"tf32", "tf32"),
    (r"fp32|float32|single", "float32"),
    (r"fp64|double", "float64"),
    (r"mixed|amp", "mixed"),
)
# Where "mixed" means bfloat16: TPU, Gaudi and processors have no float16 units, and AMD's stacks train with bfloat16.
BFLOAT16_DEVICES = r"tpu|gaudi|xeon|epyc|^mi\d"
# Stacks whose large transformers of MLPerf rounds from v3.0 on compute products in 8 bits or less where "mixed" stands.
# Of these, NVIDIA's of round v5.1 compute them in 4 bits on Blackwell (the submissions' description), Google's in integers of 8 bits
# on TPU v5 (quantised training, told of round v3.1; without it v5p would be above its peak).
NARROW = ((r"v5\.[1-9]; nemo.*; g?b[23]00", True), (r"; (jax|maxtext).*; tpu-v5", True))
EIGHT_BITS = r"nemo|maxtext|^pytorch 2\.|^pytorch( ngc 2.*)?$|megatron-bridge"


def precision(case: Case, device: str, *, language_model: bool, eight_bits: bool) -> Precision:
    """What `precision` says for a network on `device`.

    "mixed", the word of MLPerf's logs, means float16 on NVIDIA and bfloat16 elsewhere; for language models of the rounds from
    v3.0 on, whose stacks train in 8 bits where units exist (`eight_bits`), it means float8. "mixed (fp8 for ...)" says so itself.
    """
    said = _first(PRECISIONS, case.precision.lower())
    bits16 = "bfloat16" if re.search(BFLOAT16_DEVICES, device.lower()) else "float16"
    if said is None:  # nothing is said: what the device was made for
        return Precision(name=bits16 if bits16 == "bfloat16" else "float32", mixed=bits16 == "bfloat16")
    if said in ("mixed", "fp8 for transformers"):
        late = case.round >= "v3" and re.search(EIGHT_BITS, case.framework.lower())
        if language_model and eight_bits and (said != "mixed" or late):
            narrow = _first(NARROW, f"{case.round}; {case.framework.lower()}; {device.lower()}") or False
            return Precision(name="float8", mixed=True, narrow=narrow)
        return Precision(name="bfloat16" if language_model and case.round >= "v2" else bits16, mixed=True)
    if said == "4 bits":
        return Precision(name="float8", mixed=True, narrow=True)
    return Precision(name=said, mixed=said in ("float8", "bfloat16", "float16"))


@dataclass(frozen=True, kw_only=True)
class Dimensions:
    """Sizes of a network, of a batch and of a run that have no column of their own.

    tokens_per_device     of a batch that is counted in tokens
    samples_per_device    of one optimiser step, "accumulated batch"
    run_samples           of a whole run, where the log counts them as epochs
    run_tokens            of a whole run
    validated             whether the time includes an evaluation after every epoch
    direct_current        power is that of the node's own supply, behind the conversion from the grid
    """

    kv_heads: int | None
    feed_forward: int | None
    experts: int | None
    top_k: int | None
    expert_feed_forward: int | None
    shared_feed_forward: int | None
    first_dense_feed_forward: int | None
    q_lora: int | None
    kv_lora: int | None
    head_dim: int | None
    rotary_dim: int | None
    capacity_factor: float | None
    tokens_per_device: int | None
    samples_per_device: int | None
    run_samples: float | None
    run_tokens: float | None
    validated: bool
    direct_current: bool


def dimensions(case: Case) -> Dimensions:
    """What the note says of sizes."""
    text = case.note.lower()

    def number(*patterns: str) -> float | None:
        for pattern in patterns:
            if found := re.search(pattern, text):
                return float(found[1].replace(",", ""))
        return None

    def whole(*patterns: str) -> int | None:
        value = number(*patterns)
        return None if value is None else int(value)

    return Dimensions(
        kv_heads=whole(r"kv heads (\d+)", r"(\d+) kv heads", r"(\d+) key[- /]value heads", r"num_query_groups (\d+)"),
        feed_forward=whole(
            r"dense ffn (\d+)", r"(?<!expert )(?<!with )\bffn (?:hidden )?(\d+)", r"intermediate (?:size )?(\d+)"
        ),
        experts=whole(r"(\d+) (?:routed )?experts", r"experts (\d+)"),
        top_k=whole(r"top-?(\d+)"),
        expert_feed_forward=whole(r"(?<!shared-)expert ffn (\d+)", r"moe (?:ffn|intermediate)(?: size)? (\d+)"),
        shared_feed_forward=whole(r"shared[- ]expert ffn (\d+)"),
        first_dense_feed_forward=whole(r"first layer dense with ffn (\d+)"),
        q_lora=whole(r"q_lora (\d+)"),
        kv_lora=whole(r"kv_lora (\d+)"),
        head_dim=whole(r"head dim (\d+)", r"kv channels (\d+)"),
        rotary_dim=whole(r"head dim \d+ \+ (\d+) rotary"),
        capacity_factor=number(r"capacity factor (\d+(?:\.\d+)?)"),
        tokens_per_device=whole(r"batch (\d+) tokens per (?:gpu|device)"),
        samples_per_device=whole(r"accumulated batch(?: per |/)(?:gpu|device) (\d+)"),
        run_samples=number(r"epochs field of the log ([\d.]+e?\+?\d*)"),
        run_tokens=None if (tokens := number(r"\b(\d+(?:\.\d+)?)b tokens")) is None else 1e9 * tokens,
        validated="includes validation" in text,
        direct_current="dc power" in text,
    )


# Stacks that a row's schedule names beside its framework.
STACKS = ((r"zero-?3", r"^megatron$", "deepspeed zero-3"),)


# Stacks of rows that name none, by model: MLPerf's of NVIDIA of that benchmark, and those that the models' papers name.
UNNAMED = (
    (r"v\d.*;.*(resnet-?50|ssd|u-?net)", "mxnet"),
    (r"v\d.*;", "pytorch"),
    (r"bloom|mt-nlg", "megatron-deepspeed"),
)


def software_name(case: Case) -> str:
    """What :func:`hpdlf.models.cost.load_software` is asked for: the framework with how its graphs are compiled, if they are."""
    framework, plan = case.framework.lower(), case.schedule.lower()
    for pattern, of, name in STACKS:
        if re.search(pattern, plan) and re.search(of, framework):
            return name
    if not framework:
        return _first(UNNAMED, f"{case.round}; {case.model.lower()}") or ""
    return f"{case.framework} {case.compiled}".removesuffix(" eager").strip()


def _expanded(rules: Iterable[tuple[str, str]], text: str) -> str | None:
    """The first meaning whose pattern fits, with what the pattern's groups found."""
    return next((found.expand(meaning) for pattern, meaning in rules if (found := re.search(pattern, text))), None)


def _first(rules: Iterable[tuple[str, T]], text: str) -> T | None:
    return next((meaning for pattern, meaning in rules if re.search(pattern, text)), None)

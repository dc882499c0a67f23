"""How a row's network was cut over its devices, and the rules for what the row does not say.

====================  ============================================================================================================
tp, pp, cp, ep        1; where dp is told and one of tp and pp is not, what is left of the devices
dp                    devices / (tp pp cp); where the batch has fewer samples than that, or does not divide, the most replicas that
                      it divides into: the other devices do not train (MLPerf's 3D U-Net leaves them to evaluation)
global batch          dp x microbatch x accumulation; else :data:`DEFAULT_IMAGES` a device
microbatch            global batch / (dp x accumulation) where the accumulation is said; all of it in rows of latencies; else 1 where
                      stages form a pipeline; else the largest that fits into memory (:func:`candidates` lists them, the caller tries)
interleave            1; where the text says "interleaved" without a number: the least number of stages, above 1, that a rank's layers
                      divide into
ZeRO                  1 in stacks that shard the optimiser by default (NeMo, Megatron Bridge), 3 for transformers of JAX stacks
                      (every parameter is sharded over all chips); else the least that fits
recomputation         full in transformers of JAX stacks, whose default it is; else the least that fits
sequence parallel     with tensor parallelism in NeMo, Megatron Bridge and torchtitan
stages                have equally many layers in transformers
buckets               reduced while backward goes on; in Megatron of 2019 to 2022, which reduces after it, one bucket
====================  ============================================================================================================
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from ...errors import PlanError
from ...hwprofiles import Cluster
from ...models.plan import Strategy
from .system_cases import Case
from .system_hardware import ranks_of
from .system_networks import Network
from .system_text import Precision, dimensions, precision, schedule

__all__ = ["Chosen", "candidates", "precision_of"]

# Images on a device (a socket of a CPU node) in one step where neither batch nor microbatch is told.
DEFAULT_IMAGES = 64
SHARDED_OPTIMIZER = r"^nemo|megatron-bridge"
SHARDED_PARAMETERS = r"jax|maxtext|t5x|praxis"
SEQUENCE_PARALLEL = r"^nemo|megatron-bridge|torchtitan"
# Reduces gradients when all of them are there. Later ones, whose attention is one kernel, do it in buckets, and so do all other stacks.
LATE_REDUCTION = r"^megatron(-deepspeed)?( 20(19|20|21|22).*)?$"
ONE_BUCKET_BYTES = 1 << 50
# Of one batch, at once.
LATENCIES = ("inference_latency", "train_fwd_bwd_latency")
RECOMPUTE = ((r"selective", "selective"), (r"full|remat|checkpoint", "full"), (r"none|^no$", "none"))


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A strategy, what is left open in it, and on how many ranks it trains.

    inferred   what was not told in the row, in words
    """

    strategy: Strategy
    inferred: tuple[str, ...]


def candidates(case: Case, network: Network, cluster: Cluster) -> Iterator[Chosen]:
    """The strategies that a row may mean, the likeliest first: the first that fits into memory is meant. One where all is said.

    Raises:
        PlanError: numbers of the row contradict each other.
    """
    ranks, inferred = ranks_of(case), []
    tensor, pipeline, context = _split(case, ranks)
    shared = tensor * pipeline * context
    if ranks % shared:
        raise PlanError(f"tensor {tensor} x pipeline {pipeline} x context {context} do not divide {ranks} devices.")
    if case.dp is not None and case.dp * shared != ranks and case.n_devices == ranks:
        raise PlanError(
            f"data {case.dp} x tensor {tensor} x pipeline {pipeline} x context {context} are not {ranks} devices."
        )
    data = ranks // shared
    if case.dp is None:
        inferred.append(f"data {data}")
    said = schedule(case)
    batch = _batch(case, data, said.accumulation, network, inferred)
    batch = max(1, batch // network.packed)
    data = _replicas(batch, data, case.microbatch or 1, inferred)
    precise = precision_of(case, network, cluster)
    for microbatch in _microbatches(case, batch // data, said.accumulation, pipeline, inferred):
        for zero, recompute in _savers(case, network):
            many = batch // (data * microbatch)
            yield Chosen(
                strategy=Strategy.of(
                    batch=data * microbatch * many,
                    data=data,
                    tensor=tensor,
                    pipeline=pipeline,
                    context=context,
                    expert=case.ep or 1,
                    sequence_parallel=tensor > 1 and (said.sequence_parallel or _stack(case, SEQUENCE_PARALLEL)),
                    microbatches=many,
                    schedule=said.kind,
                    interleave=_interleave(case, network, said.interleaved, pipeline),
                    zero=zero if said.solver == "synchronous" else 0,
                    recompute=recompute,
                    solver=said.solver,
                    cut="layers" if network.language and pipeline > 1 else None,
                    bucket_bytes=ONE_BUCKET_BYTES
                    if _stack(case, LATE_REDUCTION) and case.attention != "flash"
                    else None,
                    precision=precise.name,
                    mixed=precise.mixed,
                ),
                inferred=tuple(inferred),
            )


def precision_of(case: Case, network: Network, cluster: Cluster) -> Precision:
    """The arithmetic of a row's network on its cluster."""
    eight = bool({"float8", "int8"} & set(cluster.device.peak_flops_per_s)) and not re.match(
        r"A\d|T4|V100", cluster.device.name
    )
    return precision(case, cluster.device.name, language_model=network.language, eight_bits=eight)


def _split(case: Case, ranks: int) -> tuple[int, int, int]:
    """(tensor, pipeline, context), with the one that is not told where the replicas are."""
    tensor, pipeline, context = case.tp or 1, case.pp or 1, case.cp or 1
    left, rest = divmod(ranks, tensor * pipeline * context * (case.dp or ranks))
    if case.dp and not rest and left > 1:
        if case.tp is None and case.pp is not None:
            return left, pipeline, context
        if case.pp is None and case.tp is not None:
            return tensor, left, context
    return tensor, pipeline, context


def _stack(case: Case, pattern: str) -> bool:
    return re.search(pattern, case.framework.lower()) is not None


def _batch(case: Case, data: int, accumulation: int | None, network: Network, inferred: list[str]) -> int:
    """Samples of one update over all devices."""
    if case.global_batch:
        return case.global_batch
    told = dimensions(case)
    if told.samples_per_device:
        return told.samples_per_device * data
    if told.tokens_per_device and network.tokens:
        return max(1, told.tokens_per_device // network.tokens) * data
    each = (case.microbatch or 0) * (accumulation or 1)
    if not each:
        each = 1 if network.language else DEFAULT_IMAGES
        inferred.append(f"{each} samples a device")
    return each * data


def _replicas(batch: int, data: int, microbatch: int, inferred: list[str]) -> int:
    """The most replicas, up to `data`, that a batch of such microbatches divides into."""
    parts = max(1, batch // microbatch)
    most = next(n for n in range(min(data, parts), 0, -1) if parts % n == 0)
    # A batch that leaves a few samples over: the table's rounding, not idle devices.
    if most < data <= batch and batch % data < 0.02 * batch:
        return data
    if most != data:
        inferred.append(f"{most} of {data} replicas train")
    return most


def _microbatches(case: Case, share: int, accumulation: int | None, pipeline: int, inferred: list[str]) -> list[int]:
    """Sizes of a microbatch to try, of a replica's `share` of the batch."""
    if case.microbatch:
        return [min(case.microbatch, share)]
    if accumulation and share % accumulation == 0:
        return [share // accumulation]
    if case.measured_quantity in LATENCIES:
        return [share]
    inferred.append("microbatch 1 (pipeline)" if pipeline > 1 else "the largest microbatch that fits")
    if pipeline > 1:
        return [1]
    return [n for n in range(share, 0, -1) if share % n == 0][:12]


def _savers(case: Case, network: Network) -> list[tuple[int, str]]:
    """(ZeRO, recomputation) to try."""
    told = schedule(case).zero
    zero = case.zero_stage if case.zero_stage is not None else told
    recompute = next((meaning for pattern, meaning in RECOMPUTE if re.search(pattern, case.recompute.lower())), None)
    if zero is None and network.language and _stack(case, SHARDED_OPTIMIZER):
        zero = 1
    if network.language and _stack(case, SHARDED_PARAMETERS):
        zero, recompute = 3 if zero is None else zero, recompute or "full"
    if case.measured_quantity in LATENCIES:
        return [(zero or 0, recompute or "none")]
    zeros = [zero] if zero is not None else [0, 1, 2, 3] if network.language else [0]
    kinds = [recompute] if recompute else ["none", "selective", "full"] if network.language else ["none"]
    return [(stage, kind) for kind in kinds for stage in zeros]


def _interleave(case: Case, network: Network, interleaved: bool, pipeline: int) -> int:
    if pipeline == 1:
        return 1
    if case.interleave:
        return case.interleave
    layers = network.blocks // pipeline
    return next((n for n in range(2, layers + 1) if layers % n == 0), 1) if interleaved else 1

"""What a whole run does besides steps: how often each benchmark evaluates, and on how much.

The rules of MLPerf Training fix when a run evaluates and on which data (training_policies and the references' READMEs, recalled);
DAWNBench's runs were validated after every epoch. A time to train reaches from the first step to the evaluation that passed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .system_cases import Case
from .system_networks import Network
from .system_text import dimensions

__all__ = ["IMAGENET", "Evaluations", "evaluations_of", "samples_of"]

IMAGENET, IMAGENET_VALIDATION = 1_281_167, 50_000
COCO, COCO_VALIDATION = 117_266, 5_000
OPEN_IMAGES, OPEN_IMAGES_VALIDATION = 1_170_301, 24_781
KITS_TRAINING, KITS_VALIDATION = 168, 42
# A volume of KiTS is evaluated in windows as large as a training sample that overlap by half: about 5 x 5 x 3 of them.
KITS_WINDOWS = 75
BERT_VALIDATION = 10_000


@dataclass(frozen=True, kw_only=True)
class Evaluations:
    """A run evaluates on `samples` samples after every `every_samples`, first after `first_samples`, and at its end."""

    every_samples: float
    samples: int
    first_samples: float


def evaluations_of(case: Case, family: str) -> Evaluations | None:
    """The evaluations within a time to train; None where none is within it."""
    if not case.round:
        if dimensions(case).validated:
            return Evaluations(every_samples=IMAGENET, samples=IMAGENET_VALIDATION, first_samples=IMAGENET)
        return None
    if family == "resnet":  # every fourth epoch
        return Evaluations(every_samples=4 * IMAGENET, samples=IMAGENET_VALIDATION, first_samples=3 * IMAGENET)
    if family == "ssd":  # after epoch 40, then every fifth
        return Evaluations(every_samples=5 * COCO, samples=COCO_VALIDATION, first_samples=40 * COCO)
    if family == "retinanet":
        return Evaluations(every_samples=OPEN_IMAGES, samples=OPEN_IMAGES_VALIDATION, first_samples=OPEN_IMAGES)
    if family == "mask r-cnn":
        return Evaluations(every_samples=COCO, samples=COCO_VALIDATION, first_samples=COCO)
    if family == "u-net 3d":  # every 20 epochs from epoch 1,000 on
        return Evaluations(
            every_samples=20 * KITS_TRAINING, samples=KITS_VALIDATION * KITS_WINDOWS, first_samples=1000 * KITS_TRAINING
        )
    if family == "bert":  # every 0.05 x (230.23 x batch + 3,000,000) samples, rounded down to 25,000
        every = max(25_000.0, 0.05 * (230.23 * (case.global_batch or 448) + 3_000_000) // 25_000 * 25_000)
        return Evaluations(every_samples=every, samples=BERT_VALIDATION, first_samples=every)
    if family == "gpt":
        return Evaluations(every_samples=24_576, samples=5_659, first_samples=24_576)
    if family == "llama" and "lora" in case.model.lower():  # the first three are skipped
        return Evaluations(every_samples=384, samples=173, first_samples=4 * 384)
    if family == "llama" and re.search(r"405b", case.model.lower()):
        return Evaluations(every_samples=46_080, samples=5_760, first_samples=46_080)
    if family == "llama":
        return Evaluations(every_samples=12_288, samples=1_024, first_samples=12_288)
    if family == "transformer":
        return Evaluations(every_samples=4_590_101, samples=3_003, first_samples=4_590_101)
    return None


def samples_of(case: Case, network: Network) -> float | None:
    """Samples until the run stopped: the column's, or the note's, which may count tokens ("366B tokens")."""
    said = dimensions(case)
    if case.samples_to_stop or said.run_samples:
        return case.samples_to_stop or said.run_samples
    return said.run_tokens / network.tokens if said.run_tokens and network.tokens else None

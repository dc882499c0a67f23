"""What published tables call a device: one rule that finds it however it is spelt.

A name is a set of words. Case, separators, vendor words ("NVIDIA Tesla", "Intel(R) Xeon(R)"), power in watts and clocks
do not count; "80GB", "80 GB" and "80" are one word, and so are "PCIe" and "PCI-E"; "SXM4" says "SXM" and more. A device
answers to its profile's name and aliases and knows, besides, its memory, vendor and architecture:

1. a name whose words are those of one of the device's names, its memory aside, is that device;
2. else one whose words are all known to the device, if it is the only such device;
3. else the name is ambiguous or unknown, and refused with the nearest names.

So "V100" is what the profile that lists the alias "V100" says, and "A100", which none lists, is refused: the one with
40 GB and the one with 80 GB differ.

>>> sorted(words("NVIDIA A100-SXM4-80GB (400W)"))
['80', 'a100', 'sxm', 'sxm4']
>>> words("Intel(R) Xeon(R) Gold 6148 CPU @ 2.40GHz") == words("Gold 6148")
True
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from functools import lru_cache
from typing import NamedTuple

__all__ = ["Known", "Match", "match", "nearest", "words"]

_REMARKS = re.compile(
    r"\((?:r|tm|c)\)|@.*$|\b\d+(?:\.\d+)?\s*(?:[gm]hz|w(?:att)?)\b|\b\d+[- ]core\b|\bcore\(s\)", re.IGNORECASE
)
# Vendors, brands and remarks that a name has or lacks without meaning another device.
_NOISE = frozenset(
    (
        *("nvidia", "amd", "ati", "intel", "google", "habana", "tesla", "quadro", "geforce", "gtx", "rtx", "radeon"),
        *(
            "instinct",
            "xeon",
            "cloud",
            "accelerator",
            "accelerators",
            "gpu",
            "gpus",
            "cpu",
            "processor",
            "tensor",
            "core",
        ),
        *("cores", "chip", "device", "dense", "one", "of", "the", "ultra", "generation", "gen3", "gen4", "gen5", "cts"),
        *("dlc", "oam", "hbm", "hbm2", "hbm2e", "hbm3", "hbm3e", "gddr5", "gddr5x", "gddr6", "gddr6x"),
    )
)
_JOINED = re.compile(r"^(rtx|gtx|quadro|titan|gold|silver|platinum|epyc|knl|phi|tpu)([a-z0-9]*[0-9x][a-z0-9]*|v)$")
_FORM = re.compile(r"^(sxm|smx)\d?$|^pcie?$|^nvl$")


class Known(NamedTuple):
    """A device that there is: its profile's name, its other names, and what else may be said of it."""

    name: str
    aliases: tuple[str, ...]
    memory_gb: int
    facts: tuple[str, ...]


class Match(NamedTuple):
    """The one device, or None with all that the name could mean (none: it is unknown)."""

    name: str | None
    candidates: tuple[str, ...]


@lru_cache(maxsize=4096)
def words(name: str) -> frozenset[str]:
    """The words of a name that tell devices apart."""
    text = _REMARKS.sub(" ", name.lower().replace("_", " ")).replace("pci-e", "pcie")
    text = re.sub(r"(\d+)\s*gi?b\b", r"\1", text)
    text = re.sub(r"(\d+)\s+ti\b", r"\1ti", text)
    found: set[str] = set()
    for word in re.split(r"[^a-z0-9.]+", text):
        split = _JOINED.match(word)
        for part in split.groups() if split else (word,):
            part = part.strip(".")
            if part and part not in _NOISE:
                found.add(part)
                if _FORM.match(part) and part.startswith("s"):
                    found.add("sxm")
    return frozenset(found)


def match(name: str, devices: Iterable[Known]) -> Match:
    """The device that `name` means, by the rule at the top of this module."""
    asked = words(name)
    exact, partial = [], []
    for device in devices:
        memory = frozenset({str(device.memory_gb)})
        names = [words(one) for one in (device.name, *device.aliases)]
        if any(asked == one or asked - memory == one - memory for one in names if one - memory):
            # All words of a name beat a name that leaves the memory open.
            exact.append((not any(asked == one for one in names), device.name))
        elif asked - memory and not all(_FORM.match(word) for word in asked - memory):
            known = frozenset().union(memory, *names, *map(words, device.facts))
            if asked <= known and any(asked & one - memory - words(" ".join(device.facts)) for one in names):
                partial.append(device.name)
    best = [one for later, one in exact if later == min(later for later, _ in exact)]
    found = tuple(best or partial)
    return Match(found[0] if len(found) == 1 else None, found)


def nearest(name: str, devices: Iterable[Known], n: int = 5) -> tuple[str, ...]:
    """Devices whose names look like `name`, the nearest first."""
    asked = words(name)
    spelt: dict[str, str] = {}
    shared = []
    for device in devices:
        for one in (device.name, *device.aliases):
            its = words(one)
            spelt.setdefault("".join(sorted(its)), device.name)
            if any(not _FORM.match(word) and len(word) > 2 for word in its & asked):
                shared.append(device.name)
    close = [spelt[key] for key in get_close_matches("".join(sorted(asked)), spelt, n=n, cutoff=0.6)]
    return tuple(dict.fromkeys([*shared, *close]))[:n]

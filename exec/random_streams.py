"""Random numbers that depend on a seed and on what they are for, never on who asks or in which order.

Philox (Salmon et al. 2011) is a counter-based generator: a key gives a stream. Here the key is the run's seed and the
CRC-32 of the purpose's name with a number (an epoch, say). Only raw 64-bit words are used, which NumPy promises never
to change.

>>> sorted(permutation(5, seed=7, purpose="order", number=0).tolist())
[0, 1, 2, 3, 4]
>>> uniform(1000, seed=7, purpose="fc.weight").mean().round(1)
np.float64(0.5)
"""

from __future__ import annotations

import zlib

import numpy as np

__all__ = ["permutation", "uniform", "words"]


def words(count: int, *, seed: int, purpose: str, number: int = 0) -> np.ndarray:
    """`count` uniform 64-bit words, uint64 [count]."""
    key = np.array([seed, (zlib.crc32(purpose.encode()) << 32) | number], dtype=np.uint64)
    return np.random.Philox(key=key).random_raw(count)


def uniform(count: int, *, seed: int, purpose: str, number: int = 0) -> np.ndarray:
    """`count` numbers in [0, 1), float64 [count]: the upper 53 bits of each word."""
    return (words(count, seed=seed, purpose=purpose, number=number) >> np.uint64(11)) * 2.0**-53


def permutation(count: int, *, seed: int, purpose: str, number: int = 0) -> np.ndarray:
    """The numbers below `count` in random order, int64 [count]."""
    return np.argsort(words(count, seed=seed, purpose=purpose, number=number), kind="stable")

"""Seconds of work on a device, and what the device can do at most.

On CUDA ``triton.testing.do_bench`` times with events and empties the L2 cache between calls; inputs are rotated besides
until they exceed it twice over, so that neither side finds its own in the cache. On a CPU it is wall time.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch

from cellfoundry_bench.measure import Comparison, seconds

Work = Callable[[], object]

ROUNDS = 5
REP_MS = 40
"""Milliseconds of repeats in a round of ``do_bench``."""


def device_seconds(work: Work, device: str) -> float:
    """Seconds of one call: on CUDA the median of the calls of ``REP_MS``, else one call."""
    if device == "cpu":
        return seconds(work)
    from triton.testing import do_bench

    return float(do_bench(work, warmup=10, rep=REP_MS, return_mode="median")) / 1e3


def median_device_seconds(work: Work, device: str, rounds: int = ROUNDS) -> float:
    """Median over rounds, after one call that is not counted."""
    work()
    return sorted(device_seconds(work, device) for _ in range(rounds))[rounds // 2]


def compare_on(device: str, ours: Work, peer: Work, rounds: int = ROUNDS) -> Comparison:
    """Both sides in turn, ``rounds`` times each, after one uncounted call of either."""
    ours()
    peer()
    timed = [(device_seconds(ours, device), device_seconds(peer, device)) for _ in range(rounds)]
    return Comparison([pair[0] for pair in timed], [pair[1] for pair in timed])


def rotated(make: Callable[[int], Work], device: str, n_bytes: float) -> Work:
    """Calls what ``make(seed)`` gave for one seed after another, enough of them to exceed L2 twice over.

    Args:
        make: builds inputs of ``n_bytes`` and the work on them.
        device: "cpu" (one set of inputs) or "cuda".
        n_bytes: of one set of inputs.
    """
    copies = 1
    if device != "cpu":
        copies += int(2 * torch.cuda.get_device_properties(0).L2_cache_size / max(n_bytes, 1))
    works = itertools.cycle([make(seed) for seed in range(min(copies, 32))])
    return lambda: next(works)()


@dataclass(frozen=True)
class Cost:
    """What a piece of work takes at least: FLOPs, and bytes of memory traffic."""

    flops: float
    bytes: float


@dataclass(frozen=True)
class Roofline:
    """What a device reached in the same run: FLOP/s of a large bf16 matrix product, bytes/s of a copy."""

    flops: float
    bytes: float

    def seconds(self, cost: Cost) -> float:
        """The least time that work of this cost takes."""
        return max(cost.flops / self.flops, cost.bytes / self.bytes)


def measured_roofline(device: str = "cuda", size: int = 8192) -> Roofline:
    """bf16 product of two (size, size) matrices, and a copy of 1 GiB (read and written)."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in "ab")
    source = torch.empty(size * size * 8, device=device, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    product = median_device_seconds(lambda: a @ b, device)
    copy = median_device_seconds(lambda: target.copy_(source), device)
    return Roofline(2 * size**3 / product, 2 * source.nbytes / copy)

"""What the masking kernels share on the device: random words of a decision, and a search in sorted numbers."""

# Arguments of a kernel have no Python type.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def philox_words(seed, step, decision, cell_id, index):
    """Four uint32 words of ``masking.definition``'s streams; seed and step are words in int32 clothes."""
    key = (step.to(tl.uint32).to(tl.uint64) << 32) | seed.to(tl.uint32).to(tl.uint64)
    low, high = (cell_id & 0xFFFFFFFF).to(tl.uint32), ((cell_id >> 32) & 0xFFFFFFFF).to(tl.uint32)
    return tl.philox(key, index.to(tl.uint32), decision.to(tl.uint32), low, high)


@triton.jit
def word_of_each(seed, step, decision, cell_id, start, BLOCK: tl.constexpr):
    """Word ``g % 4`` of index ``g // 4`` for ``BLOCK`` genes from ``start``, a multiple of 4; as int64."""
    index = start // 4 + tl.arange(0, BLOCK // 4)
    word_0, word_1, word_2, word_3 = philox_words(
        seed, step, tl.full([], decision, tl.uint32), cell_id, index
    )
    # join puts its second argument behind the first: (index, 2, 2), then flat in the order 0, 1, 2, 3.
    words = tl.join(tl.join(word_0, word_2), tl.join(word_1, word_3))
    return tl.reshape(words, [BLOCK]).to(tl.int64)


@triton.jit
def count_up_to(ptr, length, wanted, STEPS: tl.constexpr):
    """How many of the ``length`` ascending numbers at ``ptr`` are at most ``wanted``; length < 2^STEPS."""
    count = tl.zeros_like(wanted)
    for level in tl.static_range(STEPS):
        probe = count + (1 << (STEPS - 1 - level))
        is_inside = probe <= length
        number = tl.load(ptr + probe - 1, mask=is_inside, other=0)
        count = tl.where(is_inside & (number <= wanted), probe, count)
    return count

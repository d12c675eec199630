"""Where the kernel keeps what: sizes that its parts agree on."""

from __future__ import annotations

from nx46vx.model.candidates import TILE

#: Samples (slots) that have partial sums of their own, whatever the width of a register.
SLOTS = 16

#: Most samples of a block.
BLOCK = 256

#: Blocks are filled up with nothing (zero design) to a multiple of this.
STEP = 64

#: What a sample that fills a block up adds to the loss is 1 (in units of log 2), and this to the intercept's gradient.
PADDING_ERROR = 0.5

#: Floats from one row of a block's design to the next: no power of two, so that rows do not share cache sets.
ROW = BLOCK + SLOTS

#: Lanes that are advanced together.
GROUP = 3

#: Numbers per feature that standardise: shift and 1/scale of x, then 1/scale and
#: -shift/scale of x^2, then shift and 1/scale of h.
CONSTANTS = 6

#: Floats of a cache line.
LINE = 16

#: What describes a tile in one pass: addresses, the number of lanes, and how many numbers lie between one chunk's
#: results and the next one's.
JOB = (
    "rows", "constants", "bounds", "blocks", "pieces", "weights", "lanes", "out", "out_step", "counts", "counts_step",
)  # fmt: skip

#: A validation sample counts 1 when positive and this when negative: two counts in one integer.
NEGATIVE = 1 << 16

#: Longest chunk whose counts fit: every slot holds at most 2^16 - 1 of its samples.
CHUNK_MAX = (NEGATIVE - 1) * SLOTS


def scratch_floats(features: int, thresholds: int) -> int:
    """Floats of working memory that a call needs: design, errors, and each lane's loss, gradient or counts."""
    columns = 3 * features + 1
    return (columns + 1) * ROW + GROUP * ROW + TILE * (max(columns, thresholds) + 1) * SLOTS

"""Which checkpoints of one owner may go."""

from __future__ import annotations

from collections.abc import Collection


def removable(numbers: Collection[int], keep: int) -> list[int]:
    """Of these valid checkpoints, the numbers to remove, oldest first: all but the ``keep`` newest.

    Damaged checkpoints and those of other runs are not to be among ``numbers``: they count for nothing and stay.

    Raises:
        ValueError: ``keep`` is below 2: while a checkpoint is committed, the one before it has to stay.
    """
    if keep < 2:
        raise ValueError("at least two checkpoints have to be kept")
    return sorted(numbers)[:-keep]

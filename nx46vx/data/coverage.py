"""Before any long work: really read a sample of the files, and say which pairs are used and why not all."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from nx46vx.data.cases import SKIPPED_BY_CONFIG, Case, Dataset
from nx46vx.data.integrity import label_counts
from nx46vx.data.splits import seeded_order
from nx46vx.data.volume_io import read_volume
from nx46vx.errors import DataError
from nx46vx.runtime.digest import digest_file
from nx46vx.runtime.io_clock import IoClock
from nx46vx.runtime.sink import EventSink


@dataclass(frozen=True)
class Coverage:
    """Pairs found on disk against pairs used; ``pct`` is 100 when they are equal, ``reason`` is then empty."""

    discovered: int
    selected: tuple[Case, ...]
    pct: float
    reason: str
    justified: bool


def preflight(dataset: Dataset, *, fraction: float, seed: int, sink: EventSink, io: IoClock | None = None) -> None:
    """Read ``ceil(fraction * n)`` pairs and test volumes whole, at least one of each, chosen by the seed.

    ``io`` counts the reading.

    Raises:
        DataError: a file is damaged or is no longer what discovery found.
    """
    train = _drawn(dataset.train, fraction, seed, "preflight train")
    test = _drawn(dataset.test, fraction, seed, "preflight test")
    sink.emit(
        "PREFLIGHT_START", fraction=fraction, train_pairs=len(train), test_files=len(test),
        cases=[case.case_id for case in (*train, *test)],
    )  # fmt: skip
    started, total = time.monotonic(), 0
    for case in (*train, *test):
        with (io or IoClock()).counting("read_volumes"):
            total += _read(case, case.image, case.image_digest)
            if case.label is not None:
                total += _read(case, case.label, case.label_digest, counts=case.counts)
    sink.emit(
        "PREFLIGHT_OK", train_pairs=len(train), test_files=len(test), files=2 * len(train) + len(test), bytes=total,
        seconds=time.monotonic() - started,
    )  # fmt: skip


def select_pairs(dataset: Dataset, *, max_pairs: int | None, reason: str, seed: int, sink: EventSink) -> Coverage:
    """All usable pairs, or ``max_pairs`` of them chosen by the seed; states the gap to what lies on disk.

    A gap is justified when all of it has a reason: the configuration's own, or a named skip.
    """
    selected = dataset.train
    if max_pairs is not None and max_pairs < len(selected):
        chosen = set(seeded_order((case.case_id for case in selected), seed=seed, purpose="pairs")[:max_pairs])
        selected = tuple(case for case in selected if case.case_id in chosen)
    discovered, left_out = dataset.pair_count, len(dataset.train) - len(selected)
    pct = 100.0 * len(selected) / discovered if discovered else 0.0
    reasons = _reasons(dataset, left_out, max_pairs, reason)
    justified = left_out == 0 or bool(reason.strip())
    sink.emit(
        "TRAIN_DATASET_AUDIT", pair_count_discovered=discovered, pair_count_usable=len(dataset.train),
        pair_count_selected_for_training=len(selected), coverage_pct_selected_vs_discovered=pct,
    )  # fmt: skip
    sink.emit(
        "TRAIN_COVERAGE_PLAN", train_pair_coverage_pct_effective=pct, coverage_gap_reason=reasons,
        coverage_gap_is_justified=justified, cases=[case.case_id for case in selected],
    )  # fmt: skip
    return Coverage(discovered, selected, pct, reasons, justified)


def _reasons(dataset: Dataset, left_out: int, max_pairs: int | None, reason: str) -> str:
    parts = [f"max_pairs={max_pairs}: {reason.strip() or 'no reason given'}"] if left_out else []
    by_config = [case_id for case_id, why in dataset.skipped_pairs if why == SKIPPED_BY_CONFIG]
    if by_config:
        parts.append(f"skip_cases: {', '.join(by_config)}")
    parts += [f"{case_id}: {why}" for case_id, why in dataset.skipped_pairs if why != SKIPPED_BY_CONFIG]
    return "; ".join(parts)


def _drawn(cases: Iterable[Case], fraction: float, seed: int, purpose: str) -> list[Case]:
    by_id = {case.case_id: case for case in cases}
    count = min(len(by_id), max(1, math.ceil(fraction * len(by_id) - 1e-9)))
    return [by_id[case_id] for case_id in sorted(seeded_order(by_id, seed=seed, purpose=purpose)[:count])]


def _read(case: Case, path: Path, digest: str | None, *, counts: tuple[int, int, int] | None = None) -> int:
    """Decode a file whole and compare it with what discovery found; return its decoded bytes."""
    volume = read_volume(path, case_id=case.case_id)
    same = volume.shape == case.shape and (counts is None or label_counts(volume, path) == counts)
    if not same or digest_file(path) != digest:
        raise DataError(
            "the file is not what discovery found", where=f"case {case.case_id}, {path}",
            found=f"shape {volume.shape}, other bytes than remembered",
            fix="let nothing write there, remove the book of digests in the cache folder, and start again",
        )  # fmt: skip
    return int(volume.nbytes)

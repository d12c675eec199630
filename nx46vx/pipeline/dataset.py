"""Stage one: the dataset is found, checked, chosen from and split."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

from nx46vx.data.coverage import Coverage, preflight, select_pairs
from nx46vx.data.discovery import Case, Dataset, discover
from nx46vx.data.integrity import DigestBook
from nx46vx.data.splits import Split, make_split
from nx46vx.data.synthetic import make_dataset
from nx46vx.features.request import SampleRequest
from nx46vx.logs import say
from nx46vx.pipeline.session import Session
from nx46vx.runtime.heartbeat import heartbeat
from nx46vx.settings import Settings


@dataclass(frozen=True)
class Cases:
    """The dataset as this run uses it."""

    dataset: Dataset
    coverage: Coverage
    split: Split

    @property
    def by_id(self) -> dict[str, Case]:
        return {case.case_id: case for case in self.coverage.selected}

    def of(self, role: str) -> list[Case]:
        """Cases of a role (train, validation, holdout), sorted by id."""
        return [self.by_id[case_id] for case_id in getattr(self.split, role)]

    def requests(self, session: Session) -> list[SampleRequest]:
        """What is sampled of each pair: balanced for training, natural for validation and hold-out."""
        return sample_requests(session.settings, self.by_id, self.split)

    def to_json(self) -> dict[str, Any]:
        return {
            "dataset": self.dataset.digest,
            "train_pairs": [case.to_json() for case in self.coverage.selected],
            "test": [case.to_json() for case in self.dataset.test],
            "skipped": [list(pair) for pair in self.dataset.skipped],
            "coverage": {
                "pair_count_discovered": self.coverage.discovered,
                "train_pair_coverage_pct_effective": self.coverage.pct,
                "coverage_gap_reason": self.coverage.reason,
                "coverage_gap_is_justified": self.coverage.justified,
            },
            "split": self.split.to_json(),
        }


def sample_requests(settings: Settings, by_id: Mapping[str, Case], split: Split) -> list[SampleRequest]:
    """The samples of all pairs of a split, training first, then validation, then hold-out."""
    features = settings.features
    limits = {
        "train": features.max_samples_per_volume,
        "validation": features.validation_samples_per_volume,
        "holdout": features.validation_samples_per_volume,
    }
    return [
        SampleRequest(by_id[case_id], role, settings.seed, limit, features.block)  # type: ignore[arg-type]
        for role, limit in limits.items()
        for case_id in getattr(split, role)
    ]


def find_cases(session: Session, executor: Executor) -> Cases:
    """Make the volumes if none are given, then discover, read a sample, choose and split."""
    settings, log = session.settings, session.log
    if settings.data.dir is None:
        with heartbeat(log, "make_data"):
            make_dataset(session.paths.data, settings.data.synthetic, sink=log, executor=executor)
    with heartbeat(log, "discovery"):
        dataset = discover(
            session.data_dir, book=DigestBook(session.cache_dir / "digests.json"), sink=log, executor=executor,
            skip_cases=settings.data.skip_cases, io=session.io,
        )  # fmt: skip
        session.progress.set("discovery", 1.0)
        session.governor.check()
        preflight(dataset, fraction=settings.data.preflight_fraction, seed=settings.seed, sink=log, io=session.io)
    session.progress.set("load", 1.0)
    session.governor.check()
    coverage = select_pairs(
        dataset, max_pairs=settings.data.max_pairs, reason=settings.data.max_pairs_reason, seed=settings.seed, sink=log
    )
    split = make_split(
        [case.case_id for case in coverage.selected], seed=settings.seed,
        validation_fraction=settings.data.validation_fraction, holdout_fraction=settings.data.holdout_fraction,
    )  # fmt: skip
    log.emit("SPLIT", **split.to_json())
    say(
        f"data: {len(coverage.selected)} of {coverage.discovered} pairs "
        f"({len(split.train)} train, {len(split.validation)} validation, {len(split.holdout)} hold-out), "
        f"{len(dataset.test)} test volumes"
    )
    for case_id, reason in dataset.skipped:
        say(f"data: skipped {case_id}: {reason}")
    return Cases(dataset, coverage, split)

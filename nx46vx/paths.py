"""Every file name of a run directory, made in one place."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar


@dataclass(frozen=True)
class RunPaths:
    """Names below one run directory. Makes nothing on disk."""

    root: Path

    #: Maps of how sure the ensemble is, by name.
    MAPS: ClassVar[tuple[str, ...]] = ("deviation", "disagreement")

    @property
    def plan(self) -> Path:
        return self.root / "plan.json"

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def identity(self) -> Path:
        """Which run this is: id, version, time of birth."""
        return self.root / "run.json"

    @property
    def lock(self) -> Path:
        return self.root / "run.lock"

    @property
    def data(self) -> Path:
        """Synthetic volumes that the run made for itself."""
        return self.root / "data"

    @property
    def events(self) -> Path:
        return self.root / "events"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def decisions(self) -> Path:
        """Decisions that depended on time or resources, replayed on resume."""
        return self.root / "decisions.json"

    @property
    def costs(self) -> Path:
        """What pieces of work have cost so far, for estimates."""
        return self.root / "costs.json"

    @property
    def progress(self) -> Path:
        """The progress shown last: a later session never shows less."""
        return self.root / "progress.json"

    @property
    def latest_valid(self) -> Path:
        """Which checkpoint was the newest valid one when a session last looked; for people, never read back."""
        return self.root / "LATEST_VALID_CKPT"

    def superseded(self, session: int) -> Path:
        """What session ``session`` set aside because it did not fit what the run was to become."""
        return self.root / "superseded" / f"session-{session:08d}"

    @property
    def leaderboard(self) -> Path:
        return self.root / "leaderboard.csv"

    @property
    def ensemble(self) -> Path:
        return self.root / "ensemble.json"

    @property
    def masks(self) -> Path:
        return self.root / "masks"

    def mask(self, case_id: str) -> Path:
        return self.masks / f"{case_id}.tif"

    @property
    def mask_search(self) -> Path:
        """The search over the mask's parameters."""
        return self.root / "mask_search"

    @property
    def mask_journal(self) -> Path:
        """Optuna's journal, which optuna-dashboard opens."""
        return self.mask_search / "journal.log"

    @property
    def mask_leaderboard(self) -> Path:
        return self.mask_search / "leaderboard.csv"

    @property
    def mask_importance(self) -> Path:
        return self.mask_search / "importance.svg"

    @property
    def mask_volumes(self) -> Path:
        """Predictions that trials score masks of; made for the time of the search."""
        return self.mask_search / "volumes"

    @property
    def uncertainty(self) -> Path:
        return self.root / "uncertainty"

    def map(self, case_id: str, name: str) -> Path:
        """One of ``MAPS`` of a test case."""
        return self.uncertainty / f"{case_id}_{name}.tif"

    @property
    def submission(self) -> Path:
        return self.root / "submission.zip"

    @property
    def report_json(self) -> Path:
        return self.root / "report.json"

    @property
    def report_md(self) -> Path:
        return self.root / "report.md"

    @property
    def profile(self) -> Path:
        """Where the newest session's time went."""
        return self.root / "RUN_PROFILE_SUMMARY.json"

    @property
    def ray(self) -> Path:
        """Ray's and TensorBoard's own files; nothing of ours is read back from here."""
        return self.root / "ray"


def default_cache_dir() -> Path:
    """Where features and digests are kept when the configuration names no place."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nx46vx" / "features"


def cache_root(configured: Path | None) -> Path:
    """The feature cache's folder, absolute: the configured one, or the default."""
    return (configured or default_cache_dir()).absolute()

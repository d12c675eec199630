"""The competition's score: topology, surface distance and components of a mask against a label."""

from nx46vx.inference.scoring.cases import CaseScores, pair_files, score_cases, score_files
from nx46vx.inference.scoring.score import LabelScorer, VolumeScore, score_volume
from nx46vx.inference.scoring.topology import Counts

__all__ = [
    "CaseScores", "Counts", "LabelScorer", "VolumeScore", "pair_files", "score_cases", "score_files", "score_volume",
]  # fmt: skip

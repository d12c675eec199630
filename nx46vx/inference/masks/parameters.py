"""How probabilities become a mask: the rule that holds for all volumes, and what it means for one of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from nx46vx.errors import UsageError
from nx46vx.inference.masks.checks import check_not_negative, check_thresholds
from nx46vx.inference.masks.doubt import STEPS_PER_UNIT
from nx46vx.inference.masks.profile import VolumeProfile


@dataclass(frozen=True, kw_only=True)
class Steps:
    """The steps after hysteresis; the default of each is off.

    ``z_radius``, ``xy_radius``: closing. ``slice_gap``: slices that are bridged; ``slice_support``: drop what one slice
    alone shows. ``split_levels``: thresholds that take touching sheets apart, ``split_min_size``: voxels of a sheet.
    ``hole_size``: voxels of the largest void that is filled; ``tunnel_radius``: of the widest tunnel that is plugged.
    ``border``: voxels cleared at each face; ``dust_min_size``: components with fewer voxels are dropped.

    Raises:
        UsageError: a negative one.
    """

    z_radius: int = 0
    xy_radius: int = 0
    slice_gap: int = 0
    slice_support: bool = False
    split_levels: int = 0
    split_min_size: int = 200
    tunnel_radius: int = 0
    hole_size: int = 0
    border: int = 0
    dust_min_size: int = 0

    def __post_init__(self) -> None:
        for one in fields(Steps):
            check_not_negative(one.name, getattr(self, one.name))


@dataclass(frozen=True, kw_only=True)
class MaskParameters(Steps):
    """What is done to one volume: thresholds of probability, and bounds of a seed's doubt in steps of the maps.

    Raises:
        UsageError: thresholds that are no numbers or out of order, a negative radius or size.
    """

    strong_th: float
    weak_th: float
    max_deviation: int = 255
    max_disagreement: int = 255

    def __post_init__(self) -> None:
        check_thresholds(self.strong_th, self.weak_th)
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class MaskRule(Steps):
    """What is done to every volume.

    ``per_volume``: ``strong`` and ``weak`` are the voxels above either threshold, as multiples of the surface that the
    volume's own probabilities expect (less ``doubt_weight`` times their mean deviation); so ``weak`` is the larger one.
    Otherwise they are thresholds of probability. ``max_doubt``: the share of the probable surface that may be a seed,
    the surest first; 1 is off. ``max_disagreement``: the largest minority at a seed; 0.5 is off.
    """

    strong: float
    weak: float
    per_volume: bool
    doubt_weight: float = 0.0
    max_doubt: float = 1.0
    max_disagreement: float = 0.5

    def __post_init__(self) -> None:
        if self.per_volume and not 0 < self.strong <= self.weak:
            raise UsageError(
                "the weak share has to be at least the strong one, and both above 0", where="mask",
                found=f"strong {self.strong}, weak {self.weak}", fix="raise the weak share",
            )  # fmt: skip
        if not self.per_volume:
            check_thresholds(self.strong, self.weak)
        super().__post_init__()

    def at(self, profile: VolumeProfile) -> MaskParameters:
        """What the rule means for the volume with this distribution."""
        thresholds = self.strong, self.weak
        if self.per_volume:
            strong, weak = (profile.threshold(share, self.doubt_weight) for share in thresholds)
            thresholds = strong, min(weak, strong)
        minority = 255 if self.max_disagreement >= 0.5 else int(self.max_disagreement * STEPS_PER_UNIT)
        return MaskParameters(
            **{one.name: getattr(self, one.name) for one in fields(Steps)}, strong_th=thresholds[0],
            weak_th=thresholds[1], max_deviation=profile.doubt_at(self.max_doubt), max_disagreement=minority,
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
